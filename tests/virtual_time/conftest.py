from __future__ import annotations

from collections.abc import Iterator

import pytest

from revati.virtual_time.domain import Domain
from tests.virtual_time.members import Members


@pytest.fixture
def members() -> Iterator[Members]:
    with Domain.create(stuck_s=3) as domain:
        yield Members(domain)
    assert not domain.path.exists()
