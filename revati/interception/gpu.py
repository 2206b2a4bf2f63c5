"""GPU descriptions (``conf/gpu/*.yaml``): what a process under interception sees of its devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from revati.interception import capability
from revati.paths import conf_dir

# cudaDeviceAttr (CUDA 13 runtime API); the driver's CUdevice_attribute has the same numbers.
ATTRIBUTE_IDS = {
    "MaxThreadsPerBlock": 1, "MaxBlockDimX": 2, "MaxBlockDimY": 3, "MaxBlockDimZ": 4,
    "MaxGridDimX": 5, "MaxGridDimY": 6, "MaxGridDimZ": 7, "MaxSharedMemoryPerBlock": 8,
    "TotalConstantMemory": 9, "WarpSize": 10,
    "MaxPitch": 11, "MaxRegistersPerBlock": 12,
    "ClockRate": 13, "TextureAlignment": 14, "GpuOverlap": 15,
    "MultiProcessorCount": 16, "KernelExecTimeout": 17, "Integrated": 18, "CanMapHostMemory": 19,
    "ComputeMode": 20, "SurfaceAlignment": 30, "ConcurrentKernels": 31, "EccEnabled": 32, "PciBusId": 33,
    "PciDeviceId": 34, "TccDriver": 35, "MemoryClockRate": 36, "GlobalMemoryBusWidth": 37, "L2CacheSize": 38,
    "MaxThreadsPerMultiProcessor": 39, "AsyncEngineCount": 40, "UnifiedAddressing": 41, "PciDomainId": 50,
    "TexturePitchAlignment": 51, "ComputeCapabilityMajor": 75, "ComputeCapabilityMinor": 76,
    "StreamPrioritiesSupported": 78, "GlobalL1CacheSupported": 79, "LocalL1CacheSupported": 80,
    "MaxSharedMemoryPerMultiprocessor": 81, "MaxRegistersPerMultiprocessor": 82, "ManagedMemory": 83,
    "IsMultiGpuBoard": 84, "MultiGpuBoardGroupID": 85, "HostNativeAtomicSupported": 86,
    "SingleToDoublePrecisionPerfRatio": 87, "PageableMemoryAccess": 88, "ConcurrentManagedAccess": 89,
    "ComputePreemptionSupported": 90, "CanUseHostPointerForRegisteredMem": 91, "CooperativeLaunch": 95,
    "MaxSharedMemoryPerBlockOptin": 97, "CanFlushRemoteWrites": 98, "HostRegisterSupported": 99,
    "PageableMemoryAccessUsesHostPageTables": 100, "DirectManagedMemAccessFromHost": 101,
    "MaxBlocksPerMultiprocessor": 106, "MaxPersistingL2CacheSize": 108, "MaxAccessPolicyWindowSize": 109,
    "ReservedSharedMemoryPerBlock": 111, "SparseCudaArraySupported": 112,
    "HostRegisterReadOnlySupported": 113,
    "TimelineSemaphoreInteropSupported": 114, "MemoryPoolsSupported": 115, "GPUDirectRDMASupported": 116,
    "GPUDirectRDMAFlushWritesOptions": 117, "GPUDirectRDMAWritesOrdering": 118,
    "MemoryPoolSupportedHandleTypes": 119, "ClusterLaunch": 120, "DeferredMappingCudaArraySupported": 121,
    "IpcEventSupport": 125, "MemSyncDomainCount": 126, "NumaConfig": 130, "NumaId": 131, "MpsEnabled": 133,
    "HostNumaId": 134,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PowerModel:
    """What kernels draw and how a GPU at its power limit slows down; see ``conf/gpu/h200.yaml``."""

    limit_w: float
    time_constant_ms: float  # of the average power that is held to it
    peak_limit_w: float
    peak_time_constant_ms: float
    idle_w: float
    exponent: float
    flops_w: float
    fp8_flops_w: float
    gemm_bytes_w: float
    attention_bytes_w: float
    moves_w: float
    other_w: float  # of the kernels that are left, beyond
    other_latency_us: float  # what each of them takes at least, when it draws little
    gemm_sensitivity: float
    gemm_bound: float
    fp8_sensitivity: float
    attention_sensitivity: float
    quant_sensitivity: float
    other_sensitivity: float

    def stretch(self, peak_w: float, slow_w: float) -> float:
        """How much longer the clock's period is while the quick and the slow average power are these."""
        over = max(
            (peak_w - self.idle_w) / (self.peak_limit_w - self.idle_w),
            (slow_w - self.idle_w) / (self.limit_w - self.idle_w),
            1.0,
        )
        return float(over ** (1.0 / self.exponent))

    def gemm(self, flops_share: float, bytes_share: float, fp8: bool) -> tuple[float, float]:
        """(power in W, sensitivity to the clock) of a GEMM at these shares of the GPU's peak rates."""
        flops_w = self.fp8_flops_w if fp8 else self.flops_w
        power_w = self.idle_w + flops_w * flops_share + self.gemm_bytes_w * bytes_share
        sensitivity = self.fp8_sensitivity if fp8 else self.gemm_sensitivity
        return power_w, sensitivity * min(1.0, flops_share / self.gemm_bound)

    def attention(self, flops_share: float, bytes_share: float) -> tuple[float, float]:
        power_w = self.idle_w + self.flops_w * flops_share + self.attention_bytes_w * bytes_share
        return power_w, self.attention_sensitivity

    def other(self, duration_us: float) -> float:
        """Power in W of a kernel that is neither a GEMM nor attention, nor moves data."""
        busy_share = max(0.0, 1.0 - self.other_latency_us / duration_us) if duration_us else 0.0
        return self.idle_w + (self.other_w - self.idle_w) * busy_share


@dataclass(frozen=True, slots=True)
class GpuDescription:
    """One GPU model, as its YAML file describes it (units in the names)."""

    name: str
    uuid_prefix: str
    driver_version: str
    cuda_driver_version: int
    memory_bytes: int
    nvml_memory_bytes: int
    context_bytes: int
    library_bytes: int
    communicator_bytes: int
    graph_node_bytes: int
    nvlink_links: int
    launch_queue_depth: int
    graph_collective_limit: int
    sm_count: int
    sm_clock_mhz: int
    memory_bandwidth_gb_s: float
    bf16_tflops: float
    fp8_tflops: float | None  # None: it has no FP8
    nvlink_bandwidth_gb_s: float
    pcie_bandwidth_gb_s: float
    max_gpus_per_node: int
    compute_capability: str
    power: PowerModel | None  # None: not known, so kernels always run at full clock
    attributes: dict[str, int] = field(default_factory=dict)  # beside those of the compute capability

    def __post_init__(self) -> None:
        unknown = sorted(set(self.attributes) - set(ATTRIBUTE_IDS))
        if unknown:
            raise ValueError(f"GPU {self.name}: unknown attributes {unknown}; known: {sorted(ATTRIBUTE_IDS)}")

    def to_environment(self, count: int) -> str:
        """The ``REVATI_GPU`` value for a process that sees ``count`` of these GPUs."""
        fields: dict[str, object] = {
            name: getattr(self, name)
            for name in (
                "name", "uuid_prefix", "driver_version", "cuda_driver_version", "memory_bytes",
                "nvml_memory_bytes", "context_bytes", "library_bytes", "communicator_bytes",
                "graph_node_bytes", "nvlink_links",
            )
        }  # fmt: skip
        fields["count"] = count
        attributes = capability.attributes(self.compute_capability) | {
            "MultiProcessorCount": self.sm_count,
            "ClockRate": self.sm_clock_mhz * 1000,
            **self.attributes,
        }
        fields.update({f"attr.{ATTRIBUTE_IDS[name]}": value for name, value in attributes.items()})
        return ";".join(f"{name}={value}" for name, value in fields.items())


def known_gpus(folder: Path | None = None) -> list[str]:
    """Names accepted by `load_gpu`, sorted."""
    return sorted(path.stem for path in (folder or conf_dir() / "gpu").glob("*.yaml"))


def load_gpu(name: str, folder: Path | None = None) -> GpuDescription:
    """Read ``conf/gpu/<name>.yaml``.

    Raises:
        ValueError: for an unknown GPU, naming the known ones.
    """
    path = (folder or conf_dir() / "gpu") / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"unknown gpu '{name}'; known: {', '.join(known_gpus(folder))}")
    content = yaml.safe_load(path.read_text())
    power = PowerModel(**content["power"]) if content["power"] else None
    return GpuDescription(**{**content, "power": power})
