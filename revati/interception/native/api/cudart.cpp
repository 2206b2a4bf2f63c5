// libcudart.so.13, the CUDA runtime as torch, the engines and their extensions call it: devices and errors.
#include "cudart.h"

#include <cstdio>
#include <cstring>

#include "../core/stream.h"
#include "cuda_version.h"

using namespace revati;

namespace {

thread_local int last_error = kSuccess;

struct Properties {  // cudaDeviceProp of CUDA 13
  char name[256]; char uuid[16]; char luid[8]; unsigned luidDeviceNodeMask;
  size_t totalGlobalMem, sharedMemPerBlock; int regsPerBlock, warpSize; size_t memPitch;
  int maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3]; size_t totalConstMem; int major, minor;
  size_t textureAlignment, texturePitchAlignment; int multiProcessorCount, integrated, canMapHostMemory;
  int texture_limits[39]; size_t surfaceAlignment;
  int concurrentKernels, ECCEnabled, pciBusID, pciDeviceID, pciDomainID, tccDriver, asyncEngineCount,
      unifiedAddressing, memoryBusWidth, l2CacheSize, persistingL2CacheMaxSize, maxThreadsPerMultiProcessor,
      streamPrioritiesSupported, globalL1CacheSupported, localL1CacheSupported;
  size_t sharedMemPerMultiprocessor; int regsPerMultiprocessor, managedMemory, isMultiGpuBoard,
      multiGpuBoardGroupID, hostNativeAtomicSupported, pageableMemoryAccess, concurrentManagedAccess,
      computePreemptionSupported, canUseHostPointerForRegisteredMem, cooperativeLaunch;
  size_t sharedMemPerBlockOptin; int pageableMemoryAccessUsesHostPageTables, directManagedMemAccessFromHost,
      maxBlocksPerMultiProcessor, accessPolicyMaxWindowSize;
  size_t reservedSharedMemPerBlock; int hostRegisterSupported, sparseCudaArraySupported,
      hostRegisterReadOnlySupported, timelineSemaphoreInteropSupported, memoryPoolsSupported, gpuDirectRDMASupported;
  unsigned gpuDirectRDMAFlushWritesOptions; int gpuDirectRDMAWritesOrdering;
  unsigned memoryPoolSupportedHandleTypes; int deferredMappingCudaArraySupported, ipcEventSupported, clusterLaunch,
      unifiedFunctionPointers, deviceNumaConfig, deviceNumaId, mpsEnabled, hostNumaId;
  unsigned gpuPciDeviceID, gpuPciSubsystemID; int hostNumaMultinodeIpcSupported, reserved[56];
};

void fill_properties(Properties *p, int device) {
  std::memset(p, 0, sizeof *p);
  std::snprintf(p->name, sizeof p->name, "%s", gpu().name.c_str());
  p->uuid[15] = static_cast<char>(device + 1);
  p->totalGlobalMem = gpu().memory_bytes;
  p->sharedMemPerBlock = attribute(8); p->regsPerBlock = attribute(12); p->warpSize = attribute(10);
  p->memPitch = attribute(11); p->maxThreadsPerBlock = attribute(1);
  for (int i = 0; i < 3; ++i) { p->maxThreadsDim[i] = attribute(2 + i); p->maxGridSize[i] = attribute(5 + i); }
  p->totalConstMem = attribute(9); p->major = attribute(75); p->minor = attribute(76);
  p->textureAlignment = attribute(14); p->texturePitchAlignment = attribute(51);
  p->multiProcessorCount = attribute(16); p->integrated = attribute(18); p->canMapHostMemory = attribute(19);
  p->surfaceAlignment = attribute(30); p->concurrentKernels = attribute(31); p->ECCEnabled = attribute(32);
  p->pciBusID = attribute(33) + device; p->pciDeviceID = attribute(34); p->pciDomainID = attribute(50);
  p->tccDriver = attribute(35); p->asyncEngineCount = attribute(40); p->unifiedAddressing = attribute(41);
  p->memoryBusWidth = attribute(37); p->l2CacheSize = attribute(38); p->persistingL2CacheMaxSize = attribute(108);
  p->maxThreadsPerMultiProcessor = attribute(39); p->streamPrioritiesSupported = attribute(78);
  p->globalL1CacheSupported = attribute(79); p->localL1CacheSupported = attribute(80);
  p->sharedMemPerMultiprocessor = attribute(81); p->regsPerMultiprocessor = attribute(82);
  p->managedMemory = attribute(83); p->isMultiGpuBoard = attribute(84);
  p->hostNativeAtomicSupported = attribute(86); p->pageableMemoryAccess = attribute(88);
  p->concurrentManagedAccess = attribute(89); p->computePreemptionSupported = attribute(90);
  p->canUseHostPointerForRegisteredMem = attribute(91); p->cooperativeLaunch = attribute(95);
  p->sharedMemPerBlockOptin = attribute(97); p->maxBlocksPerMultiProcessor = attribute(106);
  p->accessPolicyMaxWindowSize = attribute(109); p->reservedSharedMemPerBlock = attribute(111);
  p->hostRegisterSupported = attribute(99); p->memoryPoolsSupported = attribute(115);
  p->memoryPoolSupportedHandleTypes = attribute(119); p->ipcEventSupported = attribute(125);
  p->clusterLaunch = attribute(120); p->unifiedFunctionPointers = 1;
}

}  // namespace

int revati::report(int error) {
  if (error != kSuccess && error != kNotReady) last_error = error;
  return error;
}

int revati::attribute(int id) {
  const auto found = gpu().attributes.find(id);
  if (found != gpu().attributes.end()) return found->second;
  std::fprintf(stderr, "revati: the GPU description of %s lacks device attribute %d\n", gpu().name.c_str(), id);
  return -1;
}

REVATI_API int cudaGetDeviceCount(int *count) { *count = gpu().count; return kSuccess; }
REVATI_API int cudaGetDevice(int *device) { *device = current_device(); return kSuccess; }
REVATI_API int cudaSetDevice(int device) { return set_current_device(device) ? kSuccess : report(kInvalidDevice); }
REVATI_API int cudaInitDevice(int device, unsigned, unsigned) { return device < gpu().count ? kSuccess : report(kInvalidDevice); }
REVATI_API int cudaDeviceGetAttribute(int *value, int id, int device) {
  if (device < 0 || device >= gpu().count) return report(kInvalidDevice);
  const auto found = gpu().attributes.find(id);
  if (found == gpu().attributes.end()) { attribute(id); return report(kInvalidValue); }
  *value = found->second + (id == 33 ? device : 0);  // PCI bus ids differ
  return kSuccess;
}
REVATI_API int cudaGetDeviceProperties(void *p, int device) {
  if (device < 0 || device >= gpu().count) return report(kInvalidDevice);
  fill_properties(static_cast<Properties *>(p), device);
  return kSuccess;
}
REVATI_API int cudaGetDeviceProperties_v2(void *p, int device) { return cudaGetDeviceProperties(p, device); }
REVATI_API int cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = device != peer; return kSuccess; }
REVATI_API int cudaDeviceEnablePeerAccess(int, unsigned) { return kSuccess; }
REVATI_API int cudaDeviceGetP2PAttribute(int *value, int attr, int, int) { *value = attr == 1 ? 0 : 1; return kSuccess; }
REVATI_API int cudaDeviceGetPCIBusId(char *id, int length, int device) {
  std::snprintf(id, static_cast<size_t>(length), "%04x:%02x:%02x.0", attribute(50), attribute(33) + device, attribute(34));
  return kSuccess;
}
REVATI_API int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return kSuccess;
}
REVATI_API int cudaDeviceGetLimit(size_t *value, int) { *value = 1024; return kSuccess; }
REVATI_API int cudaDeviceSetLimit(int, size_t) { return kSuccess; }
REVATI_API int cudaDeviceSynchronize() { synchronize_device(current_device()); return kSuccess; }
REVATI_API int cudaDeviceReset() { return kSuccess; }
REVATI_API int cudaDriverGetVersion(int *version) { *version = gpu().cuda_driver_version; return kSuccess; }
REVATI_API int cudaRuntimeGetVersion(int *version) { *version = kCudaVersion; return kSuccess; }
REVATI_API int cudaProfilerStart() { return kSuccess; }
REVATI_API int cudaProfilerStop() { return kSuccess; }

REVATI_API int cudaGetLastError() { const int e = last_error; last_error = kSuccess; return e; }
REVATI_API int cudaPeekAtLastError() { return last_error; }
REVATI_API const char *cudaGetErrorName(int e) {
  switch (e) {
    case kSuccess: return "cudaSuccess";
    case kInvalidValue: return "cudaErrorInvalidValue";
    case kOutOfMemory: return "cudaErrorMemoryAllocation";
    case kInvalidDevice: return "cudaErrorInvalidDevice";
    case kNotReady: return "cudaErrorNotReady";
    case kNotSupported: return "cudaErrorNotSupported";
    case kCapturedEvent: return "cudaErrorCapturedEvent";
    default: return "cudaErrorUnknown";
  }
}
REVATI_API const char *cudaGetErrorString(int e) {
  switch (e) {
    case kSuccess: return "no error";
    case kInvalidValue: return "invalid argument";
    case kOutOfMemory: return "out of memory";
    case kInvalidDevice: return "invalid device ordinal";
    case kNotReady: return "device not ready";
    case kNotSupported: return "operation not supported (not emulated by revati)";
    case kCapturedEvent: return "operation not permitted on an event last recorded in a capturing stream";
    default: return "unknown error (revati)";
  }
}
