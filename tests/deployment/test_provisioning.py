"""What is installed into an engine's environment, and what is left alone; nothing is really installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from revati.deployment import provisioning
from revati.environments import MEASURED


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SGLang's, with the toolkit of its wheels and nothing else."""
    monkeypatch.setenv("REVATI_SGLANG_ENV", str(tmp_path))
    wheels = tmp_path / "lib" / "python3.12" / "site-packages" / "nvidia" / "cu13"
    (wheels / "lib").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What installers were asked for."""
    asked: list[str] = []

    def run(command: list[Any], **_: Any) -> None:
        asked.extend(str(word) for word in command if "==" in str(word))

    monkeypatch.setattr(provisioning.subprocess, "run", run)
    return asked


@pytest.mark.parametrize(
    ("release", "expected"),
    [(None, MEASURED["sglang"]), (MEASURED["sglang"], MEASURED["sglang"]), ("0.99.0", None)],
)
def test_another_release_is_left_alone(
    environment: Path, installed: list[str], release: str | None, expected: str | None
) -> None:
    if release:
        metadata = environment / "lib" / "python3.12" / "site-packages" / f"sglang-{release}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {release}\n")
    provisioning.provision("sglang")
    assert installed == ([f"sglang=={expected}"] if expected else [])
    assert (environment / "cuda" / "lib64").is_dir()
    installed.clear()
    provisioning.provision("sglang")
    assert installed == [], "once"
