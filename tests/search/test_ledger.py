"""The ledger survives being cut off anywhere."""

from pathlib import Path

import pytest

from revati.search.ledger import Ledger

ROWS = [{"trial_id": f"{index:04d}", "status": "ok", "reason": "a\nb ✓"} for index in range(3)]


def write(path: Path) -> None:
    with Ledger(path) as ledger:
        for row in ROWS:
            ledger.append({"max_num_seqs": 1}, row)


def test_what_was_appended_is_read_again(tmp_path: Path) -> None:
    write(tmp_path / "ledger.jsonl")
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        assert ledger.rows == ROWS
        assert ledger.points == [{"max_num_seqs": 1}] * 3


@pytest.mark.parametrize("lost", [1, 2, 10, 40])
def test_a_torn_last_line_costs_that_line_only(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "ledger.jsonl"
    write(path)
    path.write_bytes(path.read_bytes()[:-lost])
    with Ledger(path) as ledger:
        assert ledger.rows == ROWS[:2]
        ledger.append({}, ROWS[2])
    with Ledger(path) as ledger:
        assert ledger.rows == ROWS


def test_rows_are_on_disk_before_the_ledger_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.append({}, ROWS[0])
        assert path.read_bytes().endswith(b"\n")
