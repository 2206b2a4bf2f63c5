"""Launches under emulation against recorded ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from revati.profile.match import emulated, key, main, recorded, report, without_counterpart

NORM = "triton_red_fused_add_rms_norm_"
FLASH = "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<{}> > >(int)"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    names = [
        "gemm bf16>bf16:TN",
        f"{NORM}0",
        FLASH.format("a"),
        "copy h2d",
        "only_here",
        "nccl all_reduce",
    ]
    kernels = {"name": names, "launches": [4, 2, 1, 3, 1, 1], "gpu_time_us": [40.0, 4.0, 9.0, 3.0, 1.0, 5.0]}
    pq.write_table(pa.table(kernels), tmp_path / "kernels.parquet")
    seen = [
        "nvjet_sm90_tst_128x8",
        "void cublasLt::splitKreduce_kernel<32>(int)",
        f"{NORM}5",
        FLASH.format("b"),
        "Memcpy HtoD (Pinned -> Device)",
        "Memset (Device)",
        "void strange<int>(int)",
        "void strange<int>(int)",
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(x)",
    ]
    durations = [10.0, 1.0, 2.5, 8.0, 1.0, 0.5, 7.0, 8.0, 6.0]
    pq.write_table(pa.table({"name": seen, "dur_us": durations}), tmp_path / "activities.parquet")
    return tmp_path / "kernels.parquet", tmp_path


def test_names_are_compared_by_the_work_they_stand_for(folders: tuple[Path, Path]) -> None:
    ours, theirs = emulated(folders[0]), recorded(folders[1])
    assert (theirs["gemm"].launches, theirs["gemm"].gpu_time_us) == (2, 11.0)
    assert without_counterpart(theirs, ours) == ["strange<int>", "copy memset"]
    assert without_counterpart(ours, theirs) == ["only_here"]
    assert key(f"{NORM}3") == NORM.rstrip("_")


def test_the_report_says_how_much_time_has_no_counterpart(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = report(emulated(folders[0]), recorded(folders[1]))
    assert "2 kernels are recorded, but not emulated (35.23% of that side's GPU time):" in text
    assert "1 kernels are emulated, but not recorded (1.61% of that side's GPU time):" in text
    assert "| `strange<int>` | 2 | 7.50 | – | – |" in text
    assert "| `gemm` | 2 | 5.50 | 4 | 10.00 |" in text
    assert main([str(folders[0]), str(folders[1]), f"out={tmp_path / 'r.md'}"]) == 0
    assert (tmp_path / "r.md").read_text().strip() == text
    assert main(["one"]) == 2
    assert "KERNELS" in capsys.readouterr().err
