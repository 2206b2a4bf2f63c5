"""Which releases of the engines are vouched for."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from revati import environments


def test_extras_install_the_measured_releases() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for engine, release in environments.MEASURED.items():
        assert project["optional-dependencies"][engine] == [f"{engine}=={release}"]


def test_another_release_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "0.99.0")
    assert "vllm 0.99.0" in str(environments.unmeasured_release("vllm"))
    monkeypatch.setattr(metadata, "version", lambda name: environments.MEASURED[name])
    assert environments.unmeasured_release("vllm") is None


def test_an_engine_that_is_not_installed_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert environments.unmeasured_release("vllm") is None
