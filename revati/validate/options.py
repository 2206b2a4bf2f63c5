"""The command line of `python -m revati.validate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from revati import paths
from revati.spec import HOST_MODES, HostMode, HostSpec
from revati.validate.predictions import EMULATED
from revati.validate.runs import ValidationError
from revati.virtual_time.host_table import known_tables

DEFAULT_HOST = "h200_xeon_contended"
OTHERS = "others"  # each case on the median of all machines but its own
ACCEPTED = (
    *("runs", "host", "calibrate", "mode", "jobs", "repeats", "out", "emulate", "baselines"),
    "predictor",
)


def validation_dir() -> Path:
    """The project's own measured runs and what is predicted for them."""
    return paths.home() / "validation"


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, checked."""

    folders: tuple[Path, ...]
    runs: str = "*"
    host: HostSpec = field(default_factory=lambda: HostSpec(DEFAULT_HOST))
    calibrate: bool = True
    jobs: int = 1
    repeats: int = 1
    out: Path = Path("outputs/validation")
    emulate: str = "*"  # names of cases; empty: none
    baselines: Path | None = None
    predictor: str | None = None

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Options:
        """Parse the arguments after the command.

        Raises:
            ValidationError: an unknown key, or a value that isn't accepted.
        """
        given: dict[str, str] = {}
        folders = []
        for argument in arguments:
            key, equals, value = argument.partition("=")
            if not equals:
                folders.append(Path(argument))
            elif key not in ACCEPTED:
                raise ValidationError(f"unknown option {key!r}; accepted: {', '.join(ACCEPTED)}")
            else:
                given[key] = value
        host, mode = given.get("host", DEFAULT_HOST), given.get("mode", "table")
        if mode not in HOST_MODES:
            raise ValidationError(f"mode={mode}: accepted: {', '.join(HOST_MODES)}")
        known = [*known_tables(), *([OTHERS] if "predictor" in given else [])]
        if host not in known:
            raise ValidationError(f"host={host}: accepted: {', '.join(known)}")
        baselines = given.get("baselines", "")
        if baselines and not Path(baselines).is_dir():
            raise ValidationError(f"baselines={baselines}: no such folder")
        predictor = given.get("predictor")
        if predictor is not None:
            if not predictor.isidentifier() or predictor == EMULATED:
                raise ValidationError(f"predictor={predictor}: accepted: a name other than {EMULATED}")
            for option, wrong in (("calibrate", "1"), ("emulate", "0")):
                if given.get(option) == wrong:
                    raise ValidationError(f"{option}={wrong}: not with predictor={predictor}")
        return cls(
            tuple(folders) or (validation_dir() / "runs",),
            given.get("runs", "*"),
            HostSpec(host, cast(HostMode, mode)),
            _flag("calibrate", given.get("calibrate", "1")),
            _count("jobs", given.get("jobs", "1")),
            _count("repeats", given.get("repeats", "1")),
            Path(given.get("out", "outputs/validation")),
            {"0": "", "1": "*"}.get(emulate := given.get("emulate", "1"), emulate),
            Path(baselines) if baselines else validation_dir() / "predictions",
            predictor,
        )


def _count(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValidationError(f"{name}={value}: accepted: an integer >= 1")
    return int(value)


def _flag(name: str, value: str) -> bool:
    if value not in ("0", "1"):
        raise ValidationError(f"{name}={value}: accepted: 0, 1")
    return value == "1"
