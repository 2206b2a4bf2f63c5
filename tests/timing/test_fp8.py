"""Products and other kernels in FP8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from revati import paths
from revati.timing import KernelTimer, db
from revati.timing.gpu import NoFp8Error
from tests.timing.database import LLAMA7B, SHAPE, row, write


class TestFp8:
    LAYER = (6144, 4096)

    def test_a_measured_gpu_answers_from_its_own_rows(self) -> None:
        timer = KernelTimer(paths.kernel_db_dir(), "h200", LLAMA7B)
        found = timer.gemm(256, *self.LAYER, "float8_e4m3", "bfloat16")
        assert (found.provenance, found.dtype) == ("measured", "float8_e4m3")
        assert found.duration_us < timer.gemm(256, *self.LAYER, "bfloat16", "bfloat16").duration_us

    def test_a_gpu_of_the_same_generation_reads_weights_as_much_slower_as_its_memory_is(self) -> None:
        h200, h100 = (KernelTimer(paths.kernel_db_dir(), gpu, LLAMA7B) for gpu in ("h200", "h100"))
        theirs = h200.gemm(16, *self.LAYER, "float8_e4m3", "bfloat16")
        found = h100.gemm(16, *self.LAYER, "float8_e4m3", "bfloat16")
        assert found.provenance == "measured"
        assert 1.2 * theirs.duration_us < found.duration_us < 1.45 * theirs.duration_us

    def test_what_is_quantised_with_what_tells_more_than_its_width(self) -> None:
        name = "triton_red_fused__to_copy_abs_clamp_cutlass_scaled_mm_div_max_mul_reciprocal_unsqueeze_view_0"
        llama8b, narrower = (replace(LLAMA7B, num_q_heads=heads, tp=tp) for heads, tp in ((32, 1), (16, 2)))
        found = {}
        for shape in (llama8b, narrower):
            timer = KernelTimer(paths.kernel_db_dir(), "h200", shape)
            found[shape.tp] = timer.kernel(name, (2048, 1, 1), (512, 1, 1), 0, 2048, 1)
        assert (found[1].provenance, found[2].provenance) == ("measured", "extrapolated")
        assert 0.4 * found[1].duration_us < found[2].duration_us < 0.7 * found[1].duration_us

    @pytest.mark.parametrize("gpu", ["l40s", "b200"])
    def test_another_gpu_is_as_efficient_as_in_bf16(self, tmp_path: Path, gpu: str) -> None:
        rows = [
            row(kind="gemm", kernel="g", dtype="bfloat16", m=m, n=n, k=4096, median_us=m * n / 1e4)
            for m in (1, 256, 4096)
            for n in (4096, 16384)
        ]
        write(tmp_path, rows, gpu)
        timer = KernelTimer(tmp_path, gpu, LLAMA7B)
        bf16, fp8 = (timer.gemm(4096, *self.LAYER, t, "bfloat16") for t in ("bfloat16", "float8_e4m3"))
        assert (fp8.provenance, fp8.rel_std >= 0.3) == ("extrapolated", True)
        assert 0.45 < fp8.duration_us / bf16.duration_us < 0.6

    def test_a_gpu_without_fp8_says_so(self, tmp_path: Path) -> None:
        bf16 = row(kind="gemm", kernel="g", dtype="bfloat16", m=1, n=8, k=8, median_us=2.0)
        write(tmp_path, [bf16], "a100")
        with pytest.raises(NoFp8Error, match="has no FP8"):
            KernelTimer(tmp_path, "a100", SHAPE).gemm(1, 8, 8, "float8_e4m3", "bfloat16")

    def test_its_rows_leave_bf16_as_it_is(self, tmp_path: Path) -> None:
        measured = db.read(paths.kernel_db_dir(), "h200")
        bf16 = measured.filter(pc.not_equal(measured["dtype"].cast(pa.string()).fill_null(""), "float8_e4m3"))
        assert 0 < bf16.num_rows < measured.num_rows
        db.write(bf16, tmp_path / "gpu=h200" / "all.parquet")
        rank = replace(LLAMA7B, tp=2)  # with jitter
        ours, without = (KernelTimer(folder, "h200", rank) for folder in (paths.kernel_db_dir(), tmp_path))
        for m in (1, 33, 300, 1000, 5000):
            for n, k in (self.LAYER, (5000, 3000)):
                size = m, n, k, "bfloat16", "bfloat16"
                assert ours.gemm(*size) == without.gemm(*size)
        for name in ("triton_red_fused_add_rms_norm_0", "triton_poi_fused_mul_silu_slice_1", "nobody_knows"):
            launch = (name, (100, 1, 1), (512, 1, 1), 0, 100, 4)
            assert ours.kernel(*launch) == without.kernel(*launch)
