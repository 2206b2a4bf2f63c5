"""Device attributes that follow from the compute capability.

Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and what
cudaDeviceGetAttribute says on an H200 for what the guide leaves out.
"""

from __future__ import annotations

_COMMON = {
    "MaxThreadsPerBlock": 1024, "MaxBlockDimX": 1024, "MaxBlockDimY": 1024, "MaxBlockDimZ": 64,
    "MaxGridDimX": 2147483647, "MaxGridDimY": 65535, "MaxGridDimZ": 65535,
    "MaxSharedMemoryPerBlock": 49152, "TotalConstantMemory": 65536, "WarpSize": 32, "MaxPitch": 2147483647,
    "MaxRegistersPerBlock": 65536, "TextureAlignment": 512, "GpuOverlap": 1, "KernelExecTimeout": 0,
    "Integrated": 0, "CanMapHostMemory": 1, "ComputeMode": 0, "SurfaceAlignment": 512,
    "ConcurrentKernels": 1, "EccEnabled": 1, "PciBusId": 1, "PciDeviceId": 0, "TccDriver": 0,
    "AsyncEngineCount": 3, "UnifiedAddressing": 1, "PciDomainId": 0, "TexturePitchAlignment": 32,
    "StreamPrioritiesSupported": 1, "GlobalL1CacheSupported": 1, "LocalL1CacheSupported": 1,
    "MaxRegistersPerMultiprocessor": 65536, "ManagedMemory": 1, "IsMultiGpuBoard": 0,
    "MultiGpuBoardGroupID": 0, "HostNativeAtomicSupported": 0, "PageableMemoryAccess": 0,
    "ConcurrentManagedAccess": 1, "ComputePreemptionSupported": 1, "CanUseHostPointerForRegisteredMem": 1,
    "CooperativeLaunch": 1, "CanFlushRemoteWrites": 1, "HostRegisterSupported": 1,
    "PageableMemoryAccessUsesHostPageTables": 0, "DirectManagedMemAccessFromHost": 0,
    "MaxBlocksPerMultiprocessor": 32, "MaxAccessPolicyWindowSize": 134217728,
    "ReservedSharedMemoryPerBlock": 1024, "SparseCudaArraySupported": 1, "HostRegisterReadOnlySupported": 1,
    "TimelineSemaphoreInteropSupported": 1, "MemoryPoolsSupported": 1, "GPUDirectRDMASupported": 0,
    "GPUDirectRDMAFlushWritesOptions": 1, "GPUDirectRDMAWritesOrdering": 200,
    "MemoryPoolSupportedHandleTypes": 9, "DeferredMappingCudaArraySupported": 1, "IpcEventSupport": 1,
    "NumaConfig": 0, "NumaId": -1, "MpsEnabled": 0, "HostNumaId": 0,
}  # fmt: skip

_HOPPER_AND_LATER = {
    "MaxThreadsPerMultiProcessor": 2048,
    "MaxSharedMemoryPerMultiprocessor": 228 << 10,
    "MaxSharedMemoryPerBlockOptin": 227 << 10,
    "SingleToDoublePrecisionPerfRatio": 2,
    "ClusterLaunch": 1,
    "MemSyncDomainCount": 4,
}
_BY_CAPABILITY: dict[str, dict[str, int]] = {
    "8.0": {
        "MaxThreadsPerMultiProcessor": 2048,
        "MaxSharedMemoryPerMultiprocessor": 164 << 10,
        "MaxSharedMemoryPerBlockOptin": 163 << 10,
        "SingleToDoublePrecisionPerfRatio": 2,
        "ClusterLaunch": 0,
        "MemSyncDomainCount": 1,
    },
    "8.9": {
        "MaxThreadsPerMultiProcessor": 1536,
        "MaxSharedMemoryPerMultiprocessor": 100 << 10,
        "MaxSharedMemoryPerBlockOptin": 99 << 10,
        "MaxBlocksPerMultiprocessor": 24,
        "SingleToDoublePrecisionPerfRatio": 64,
        "ClusterLaunch": 0,
        "MemSyncDomainCount": 1,
    },
    "9.0": _HOPPER_AND_LATER,
    "10.0": _HOPPER_AND_LATER,
}


def attributes(capability: str) -> dict[str, int]:
    """cudaDeviceAttr by name, as far as the compute capability tells.

    Raises:
        ValueError: an unknown capability; names the known ones.
    """
    if capability not in _BY_CAPABILITY:
        raise ValueError(f"compute_capability {capability!r}: known are {', '.join(_BY_CAPABILITY)}")
    major, minor = map(int, capability.split("."))
    version = {"ComputeCapabilityMajor": major, "ComputeCapabilityMinor": minor}
    return _COMMON | _BY_CAPABILITY[capability] | version
