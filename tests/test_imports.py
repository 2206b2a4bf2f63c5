"""Imports point one way, and what runs in an engine's process imports no Ray, Hydra or pandas."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "revati"
# Each imports from those behind it and from the modules below all; what is not here is an entry point.
LAYERS = ("search", "deployment", "engines", "virtual_time", "timing", "interception")
BELOW_ALL = ("environments", "paths", "spec", "workload")
UPWARDS = {("timing/aiconfigurator.py", "profile")}  # makes tables outside of engines, on demand


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            if node.module == "revati":
                yield from (f"revati.{alias.name}" for alias in node.names)


def files(part: str) -> list[Path]:
    single = PACKAGE / f"{part}.py"
    return [single] if single.exists() else sorted((PACKAGE / part).rglob("*.py"))


@pytest.mark.parametrize("part", [*LAYERS, *BELOW_ALL])
def test_imports_point_one_way(part: str) -> None:
    allowed = {part, *BELOW_ALL}
    allowed |= set(LAYERS[LAYERS.index(part) :]) if part in LAYERS else set()
    found = {
        (str(path.relative_to(PACKAGE)), module.split(".")[1])
        for path in files(part)
        for module in imported(path)
        if module.startswith("revati.")
    }
    assert files(part), "there is something to look at"
    assert {one for one in found - UPWARDS if one[1] not in allowed} == set()


@pytest.mark.parametrize("part", [*LAYERS[1:], *BELOW_ALL])
def test_nothing_of_an_engines_process_needs_the_search(part: str) -> None:
    packages = {module.split(".")[0] for path in files(part) for module in imported(path)}
    assert not packages & {"ray", "hydra", "omegaconf", "optuna", "pandas"}
