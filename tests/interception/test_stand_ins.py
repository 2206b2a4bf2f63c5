"""The native stand-ins, each seen from a process of its own under the preload."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from revati.interception.gpu import GpuDescription, known_gpus, load_gpu
from revati.interception.preload import emulated_environment

pytest.importorskip("torch")


def emulated(program: str, num_gpus: int = 8, gpu: str = "h200") -> str:
    """Run a program on emulated GPUs; returns what it prints."""
    environment = emulated_environment(load_gpu(gpu), num_gpus, os.environ)
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_torch_sees_the_described_gpus() -> None:
    output = emulated(
        """
        import torch
        p = torch.cuda.get_device_properties(3)
        print(torch.cuda.device_count(), p.name, p.total_memory, p.multi_processor_count, (p.major, p.minor))
        print(p.L2_cache_size, p.shared_memory_per_multiprocessor, p.regs_per_multiprocessor, p.warp_size)
        """
    )
    assert "8 NVIDIA H200 150109880320 132 (9, 0)" in output
    assert "62914560 233472 65536 32" in output


def test_nvml_agrees_with_cuda() -> None:
    output = emulated(
        """
        import pynvml, torch
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(1)
        print(pynvml.nvmlDeviceGetCount() == torch.cuda.device_count())
        print(pynvml.nvmlDeviceGetName(handle) == torch.cuda.get_device_name(1))
        print(pynvml.nvmlDeviceGetCudaComputeCapability(handle) == torch.cuda.get_device_capability(1))
        """
    )
    assert output.split() == ["True"] * 3


TRITON_KERNEL = """
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas_version
from triton.compiler import ASTSource

@triton.jit
def kernel(out):
    triton.language.store(out, 1.0)

compiled = triton.compile(ASTSource(kernel, {"out": "*fp32"}), target=GPUTarget("cuda", 90, 32))
print(compiled.asm["cubin"], "Revati" in get_ptxas_version(90), ".version" in compiled.asm["ptx"])
"""


def test_a_triton_kernel_is_assembled_by_the_stand_in(tmp_path: Path) -> None:
    """Under a key of its own: a real ptxas's caches never have it."""
    (tmp_path / "kernel.py").write_text(TRITON_KERNEL)
    output = emulated(f"import runpy; runpy.run_path({str(tmp_path / 'kernel.py')!r})")
    assert "stand-in for a module" in output
    assert "True True" in output


def test_capacity_is_enforced() -> None:
    output = emulated(
        """
        import torch
        held = torch.empty(100 << 30, dtype=torch.uint8, device="cuda")
        free, total = torch.cuda.mem_get_info()
        print(total - free >= 100 << 30)
        try:
            torch.empty(50 << 30, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError:
            print("out of memory")
        del held
        torch.cuda.empty_cache()
        torch.empty(100 << 30, dtype=torch.uint8, device="cuda")
        torch.empty(100 << 30, dtype=torch.uint8, device="cuda:1")
        print("fits")
        """
    )
    assert output.splitlines() == ["True", "out of memory", "fits"]


def test_a_communicator_of_several_ranks_takes_memory_while_it_is_there() -> None:
    output = emulated(
        """
        import ctypes, torch
        nccl = ctypes.CDLL("libnccl.so.2")
        class Id(ctypes.Structure):
            _fields_ = [("bytes", ctypes.c_byte * 128)]
        torch.empty(1, device="cuda")
        comm, one, free = ctypes.c_void_p(), Id(), [torch.cuda.mem_get_info()[0]]
        nccl.ncclGetUniqueId(ctypes.byref(one))
        for ranks in (1, 2):
            nccl.ncclCommInitRank(ctypes.byref(comm), ranks, one, 0)
            free.append(torch.cuda.mem_get_info()[0])
        nccl.ncclCommDestroy(comm)
        free.append(torch.cuda.mem_get_info()[0])
        print(*(free[0] - now for now in free[1:]))
        """
    )
    assert output.split() == ["0", str(load_gpu("h200").communicator_bytes), "0"]


def test_metadata_survives_the_device_and_bulk_costs_no_memory() -> None:
    output = emulated(
        """
        import resource, torch
        ids = torch.arange(1000)
        print(torch.equal(ids.cuda().cpu(), ids))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        torch.zeros(64 << 30, dtype=torch.uint8, device="cuda")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000)
        """
    )
    assert output.split() == ["True", "True"]


def test_an_api_that_nobody_implemented_fails_by_name() -> None:
    output = emulated(
        """
        import ctypes
        print(ctypes.CDLL("libcudart.so.13").cudaImportExternalMemory(None, None))
        """
    )
    assert "cudaImportExternalMemory is not emulated" in output
    assert "801" in output


TIMELINE = """
    import torch
    from revati.interception.core import Cost, LaunchKey, NativeCore

    core = NativeCore()
    def price(key, cost):
        cost.duration_ns = 5_000_000 if key.type == 1 else 0
    core.set_resolver(price)
    core.set_gaps(0, 0)
    a = torch.empty(64, 64, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    start = core.now_ns()
"""


def test_launches_extend_their_stream_and_waits_move_the_clock() -> None:
    output = emulated(
        TIMELINE
        + """
    a @ a
    a @ a
    done = torch.cuda.Event()
    done.record()
    print(core.now_ns() - start, done.query())
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        a @ a
    side.synchronize()
    print(core.now_ns() - start)
    done.synchronize()
    print(core.now_ns() - start, done.query())
    """
    )
    assert output.split() == ["0", "False", "5000000", "10000000", "True"]


def test_a_replayed_graph_takes_the_time_of_its_nodes() -> None:
    output = emulated(
        TIMELINE
        + """
    graph = torch.cuda.CUDAGraph()
    a @ a
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(3):
            a @ a
    torch.cuda.synchronize()
    start = core.now_ns()
    graph.replay()
    torch.cuda.synchronize()
    print(core.now_ns() - start)
    """
    )
    assert output.split() == ["15000000"]


def test_a_full_launch_queue_blocks_the_host() -> None:
    output = emulated(
        TIMELINE
        + """
    core.set_queue(2, 36)
    for _ in range(4):
        a @ a
    print(core.now_ns() - start)
    """
    )
    # With places for two, the fourth launch waits until the second has finished.
    assert output.split() == ["10000000"]


def test_a_product_of_several_launches_takes_as_many_places_of_the_queue() -> None:
    output = emulated(
        TIMELINE
        + """
    def price_of_two(key, cost):
        cost.duration_ns, cost.launches = 5_000_000, 2
    core.set_resolver(price_of_two)
    core.set_queue(4, 36)
    for _ in range(4):
        a @ a
    print(core.now_ns() - start)
    """
    )
    assert output.split() == ["10000000"]


def test_a_graph_waits_for_the_collectives_of_graphs_long_before() -> None:
    output = emulated(
        TIMELINE
        + """
    import ctypes
    nccl = ctypes.CDLL("libnccl.so.2")
    class Id(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_char * 128)]
    comm = ctypes.c_void_p()
    nccl.ncclCommInitRank(ctypes.byref(comm), 1, Id(), 0)
    def capture(collectives):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            a @ a
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            for _ in range(collectives):
                nccl.ncclAllReduce(None, None, ctypes.c_size_t(8), 7, 0, comm, stream)
        return graph
    core.set_queue(1024, 4)
    a @ a
    for collectives in (0, 2, 6):
        graph = capture(collectives)
        torch.cuda.synchronize()
        start = core.now_ns()
        for _ in range(4):
            graph.replay()
            print((core.now_ns() - start) // 1_000_000)
    """
    )
    # With two of four, the third waits for the first. A graph with more than there may be was never seen.
    assert output.split() == ["0", "0", "0", "0", "0", "0", "5", "10", "0", "0", "0", "0"]


def test_a_graph_records_its_events_each_time_where_it_has_come_to_them() -> None:
    output = emulated(
        TIMELINE
        + """
    graph, half, inside = torch.cuda.CUDAGraph(), torch.cuda.Event(external=True), torch.cuda.Event()
    other = torch.cuda.Stream()
    with torch.cuda.graph(graph):
        a @ a
        half.record()
        inside.record()
        a @ a
    torch.cuda.synchronize()
    for _ in range(2):
        start = core.now_ns()
        graph.replay()
        other.wait_event(half)
        other.synchronize()
        print(core.now_ns() - start)
        torch.cuda.synchronize()
        print(core.now_ns() - start)
    try:
        other.wait_event(inside)
    except RuntimeError as error:
        print(str(error).split("\\n")[0])
    """
    )
    assert output.splitlines()[:4] == ["5000000", "10000000"] * 2
    assert "last recorded in a capturing stream" in output, "the capture is over"


def test_launches_see_the_time_of_their_phase_pass_evenly() -> None:
    output = emulated(
        TIMELINE
        + """
    def phase():
        begin = core.now_ns()
        core.phase_begin(1, 4000)
        seen = []
        for _ in range(3):
            a @ a
            seen.append(core.now_ns() - begin)
        core.phase_end(-1)
        return seen, core.now_ns() - begin
    phase()  # learns that there are three
    print(phase())
    """
    )
    assert output.strip() == "([1000, 2000, 3000], 4000)"


def test_clocks_show_virtual_time_to_the_thread_that_asked() -> None:
    output = emulated(
        """
        import threading, time
        from revati.interception.core import NativeCore
        core = NativeCore()
        core.show_virtual_time(True)
        wall, steady = time.time(), time.monotonic()
        time.sleep(0.05)
        print(time.monotonic() - steady)
        core.advance_ns(3_000_000_000)
        print(round(time.monotonic() - steady, 6), round(time.time() - wall, 3))
        moved = []
        def other():
            begin = time.monotonic()
            time.sleep(0.05)
            moved.append(time.monotonic() - begin)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        print(moved[0] >= 0.05)
        """
    )
    assert output.split() == ["0.0", "3.0", "3.0", "True"]


def test_unknown_gpu_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown gpu 'h2000'; known: .*h200"):
        load_gpu("h2000")
    assert "h200" in known_gpus()


def test_more_gpus_than_a_node_has() -> None:
    with pytest.raises(ValueError, match="1 to 8"):
        emulated_environment(load_gpu("h200"), 9, {})


def test_unknown_attribute_is_refused() -> None:
    fields = {name: getattr(load_gpu("h200"), name) for name in GpuDescription.__dataclass_fields__}
    fields["attributes"] = {"WarpSise": 32}
    with pytest.raises(ValueError, match="WarpSise"):
        GpuDescription(**fields)


def test_a_collective_waits_for_the_slowest_rank() -> None:
    output = emulated(
        TIMELINE
        + """
    def price_of_ranks(key, cost):
        cost.duration_ns = 1_000_000
        if key.m == 64:
            cost.std_ns = 30_000
        else:
            cost.ranks = 4
    core.set_resolver(price_of_ranks)
    b = torch.empty(32, 64, device="cuda", dtype=torch.bfloat16)
    for _ in range(2):
        for _ in range(4):
            a @ a  # by the square root of four times 30 us apart
        b @ a
    torch.cuda.synchronize()
    print(core.now_ns() - start)
    """
    )
    assert abs(int(output) - (10_000_000 + 2 * 1.029 * 60_000)) < 10


@pytest.mark.parametrize("gpu", ["l40s", "h200", "b200"])  # a generation of CUTLASS kernels each
def test_a_cutlass_product_tells_its_size(gpu: str) -> None:
    pytest.importorskip("vllm")
    output = emulated(
        """
        import torch
        from revati.interception.core import NativeCore
        from vllm import _custom_ops

        core, seen = NativeCore(), []
        core.set_resolver(lambda key, cost: seen.append((key.type, key.name.decode(), key.m, key.n, key.k)))
        n, k, fp8 = 6144, 4096, torch.float8_e4m3fn
        weight, scale = torch.empty(n, k, device="cuda", dtype=fp8), torch.empty(1, device="cuda")
        for out in (torch.bfloat16, torch.float16):
            for m in (8, 40, 100, 200, 3000):  # each gets another kernel, the first ones swapped operands
                x, scales = torch.empty(m, k, device="cuda", dtype=fp8), torch.empty(m, 1, device="cuda")
                seen.clear()
                _custom_ops.cutlass_scaled_mm(x, weight.t(), scales, scale, out)
                print(m, *(seen[-1]))
        """,
        num_gpus=1,
        gpu=gpu,
    )
    expected = [
        f"{m} 1 f8e4m3>{out}:TN {m} 6144 4096" for out in ("bf16", "f16") for m in (8, 40, 100, 200, 3000)
    ]
    assert output.splitlines() == expected
