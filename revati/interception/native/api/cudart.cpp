// libcudart.so.13: the CUDA runtime as torch, vLLM and their extensions call it.
// Signatures follow the CUDA 13 runtime API reference; enums are ints, opaque handles are pointers.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "../core/stream.h"
#include "cuda_version.h"
#include "cutlass.h"
#include "kernels.h"

using namespace revati;

namespace {

enum Error { kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kInvalidDevice = 101, kInvalidHandle = 400,
             kNotReady = 600, kPeerAlreadyEnabled = 704, kNotSupported = 801, kCapturedEvent = 907 };
constexpr unsigned kExternal = 1;  // flag of an event that a graph records, or waits for, each time that it runs

thread_local int last_error = kSuccess;
int report(int error) {
  if (error != kSuccess && error != kNotReady) last_error = error;
  return error;
}

struct dim3 { unsigned x, y, z; };
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

int attribute(int id) {
  const auto found = gpu().attributes.find(id);
  if (found != gpu().attributes.end()) return found->second;
  std::fprintf(stderr, "revati: the GPU description of %s lacks device attribute %d\n", gpu().name.c_str(), id);
  return -1;
}

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

thread_local struct { dim3 grid, block; size_t shared; void *stream; } pushed;

int launch(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) {
  const char *name = kernel_name(function);
  if (!name) return report(98);  // cudaErrorInvalidDeviceFunction
  const CutlassProduct product = cutlass_product(name, arguments);
  if (product.types) launch_gemm(stream, product.types, product.m, product.n, product.k, 1);
  else launch_kernel(stream, name, &grid.x, &block.x, shared);
  return kSuccess;
}

}  // namespace

// ---- devices ----
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

// ---- errors ----
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

// ---- memory ----
REVATI_API int cudaMalloc(void **pointer, size_t bytes) {
  wait_to_allocate();
  *pointer = device_alloc(bytes, current_device());
  return *pointer ? kSuccess : report(kOutOfMemory);
}
REVATI_API int cudaMallocAsync(void **pointer, size_t bytes, void *) { return cudaMalloc(pointer, bytes); }
REVATI_API int cudaMallocFromPoolAsync(void **pointer, size_t bytes, void *, void *) { return cudaMalloc(pointer, bytes); }
REVATI_API int cudaMallocManaged(void **pointer, size_t bytes, unsigned) { return cudaMalloc(pointer, bytes); }
REVATI_API int cudaFree(void *pointer) { return release(pointer) ? kSuccess : report(kInvalidValue); }
REVATI_API int cudaFreeAsync(void *pointer, void *) { return cudaFree(pointer); }
REVATI_API int cudaHostAlloc(void **pointer, size_t bytes, unsigned) {
  wait_to_allocate();
  *pointer = host_alloc(bytes);
  return *pointer ? kSuccess : report(kOutOfMemory);
}
REVATI_API int cudaMallocHost(void **pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, 0); }
REVATI_API int cudaFreeHost(void *pointer) { return cudaFree(pointer); }
REVATI_API int cudaHostRegister(void *pointer, size_t bytes, unsigned) { host_register(pointer, bytes); return kSuccess; }
REVATI_API int cudaHostUnregister(void *pointer) { return cudaFree(pointer); }
REVATI_API int cudaHostGetDevicePointer(void **device, void *host, unsigned) { *device = host; return kSuccess; }
REVATI_API int cudaMemGetInfo(size_t *free_bytes, size_t *total) { memory_info(current_device(), free_bytes, total); return kSuccess; }
REVATI_API int cudaPointerGetAttributes(void *out, const void *pointer) {
  struct Attributes { int type, device; void *device_pointer, *host_pointer; long reserved[8]; };
  auto *a = static_cast<Attributes *>(out);
  const Allocation *found = find_allocation(pointer);
  std::memset(a, 0, sizeof *a);
  a->device = found ? found->device : -2;
  a->type = found ? static_cast<int>(found->space) : 0;
  a->device_pointer = found ? const_cast<void *>(pointer) : nullptr;
  a->host_pointer = found && found->space == Space::kDevice ? nullptr : const_cast<void *>(pointer);
  return kSuccess;
}
REVATI_API int cudaMemcpyAsync(void *dst, const void *src, size_t bytes, int, void *stream) { copy_async(dst, src, bytes, stream); return kSuccess; }
REVATI_API int cudaMemcpy(void *dst, const void *src, size_t bytes, int) {
  copy_async(dst, src, bytes, nullptr);
  synchronize(stream_of(nullptr));
  return kSuccess;
}
REVATI_API int cudaMemcpyPeerAsync(void *dst, int, const void *src, int, size_t bytes, void *stream) { copy_async(dst, src, bytes, stream); return kSuccess; }
REVATI_API int cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t height, int, void *stream) {
  if (width * height <= kMetadataBytes)
    for (size_t row = 0; row < height; ++row)
      std::memmove(static_cast<char *>(dst) + row * dpitch, static_cast<const char *>(src) + row * spitch, width);
  const Allocation *to = find_allocation(dst), *from = find_allocation(src);
  const bool in = to && to->space == Space::kDevice, out = from && from->space == Space::kDevice;
  launch_copy(stream, in ? (out ? "d2d" : "h2d") : "d2h", static_cast<int64_t>(width * height));
  return kSuccess;
}
REVATI_API int cudaMemset(void *dst, int value, size_t bytes) { fill(dst, value, bytes); launch_copy(nullptr, "memset", static_cast<int64_t>(bytes)); return kSuccess; }
REVATI_API int cudaMemsetAsync(void *dst, int value, size_t bytes, void *stream) { fill(dst, value, bytes); launch_copy(stream, "memset", static_cast<int64_t>(bytes)); return kSuccess; }
REVATI_API int cudaMemcpyToSymbol(const void *symbol, const void *src, size_t bytes, size_t offset, int) {
  void *dst = symbol_address(symbol);
  return dst ? cudaMemcpy(static_cast<char *>(dst) + offset, src, bytes, 1) : report(13);
}
REVATI_API int cudaGetSymbolAddress(void **pointer, const void *symbol) { *pointer = symbol_address(symbol); return *pointer ? kSuccess : report(13); }
REVATI_API int cudaDeviceGetDefaultMemPool(void **pool, int) { static int handle; *pool = &handle; return kSuccess; }
REVATI_API int cudaMemPoolSetAttribute(void *, int, void *) { return kSuccess; }
REVATI_API int cudaMemPoolGetAttribute(void *, int, void *value) { *static_cast<uint64_t *>(value) = 0; return kSuccess; }
REVATI_API int cudaMemPoolSetAccess(void *, const void *, size_t) { return kSuccess; }
REVATI_API int cudaMemPoolTrimTo(void *, size_t) { return kSuccess; }
struct IpcHandle { char bytes[64]; };
REVATI_API int cudaIpcGetMemHandle(IpcHandle *handle, void *pointer) {
  const Allocation *found = find_allocation(pointer);
  if (!found) return report(kInvalidValue);
  std::memset(handle, 0, sizeof *handle);
  std::memcpy(handle->bytes, &found->bytes, sizeof found->bytes);
  return kSuccess;
}
// A peer's memory takes address space here and no capacity: the peer's device holds it.
REVATI_API int cudaIpcOpenMemHandle(void **pointer, IpcHandle handle, unsigned) {
  size_t bytes;
  std::memcpy(&bytes, handle.bytes, sizeof bytes);
  *pointer = device_alloc(bytes, current_device(), false);
  return *pointer ? kSuccess : report(kOutOfMemory);
}
REVATI_API int cudaIpcCloseMemHandle(void *pointer) { return cudaFree(pointer); }

// ---- streams ----
REVATI_API int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
  auto *s = new Stream;
  s->device = current_device();
  s->flags = flags;
  s->priority = priority;
  streams().push_back(s);
  *stream = s;
  return kSuccess;
}
REVATI_API int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return cudaStreamCreateWithPriority(stream, flags, 0); }
REVATI_API int cudaStreamCreate(void **stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
REVATI_API int cudaStreamDestroy(void *stream) { destroy(static_cast<Stream *>(stream)); return kSuccess; }
REVATI_API int cudaStreamGetPriority(void *stream, int *priority) { *priority = stream_of(stream)->priority; return kSuccess; }
REVATI_API int cudaStreamGetFlags(void *stream, unsigned *flags) { *flags = stream_of(stream)->flags; return kSuccess; }
REVATI_API int cudaStreamGetDevice(void *stream, int *device) { *device = stream_of(stream)->device; return kSuccess; }
REVATI_API int cudaStreamGetId(void *stream, unsigned long long *id) { *id = reinterpret_cast<uintptr_t>(stream); return kSuccess; }
REVATI_API int cudaStreamSynchronize(void *stream) { host_call(); synchronize(stream_of(stream)); return kSuccess; }
REVATI_API int cudaStreamQuery(void *stream) { return done(stream_of(stream)) ? kSuccess : kNotReady; }
REVATI_API int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
  if (!stream_of(stream)->capture) function(data);
  return kSuccess;
}
REVATI_API int cudaStreamAddCallback(void *stream, void (*function)(void *, int, void *), void *data, unsigned) { function(stream, kSuccess, data); return kSuccess; }

// ---- events ----
REVATI_API int cudaEventCreateWithFlags(void **event, unsigned) { auto *e = new Event; e->device = current_device(); *event = e; return kSuccess; }
REVATI_API int cudaEventCreate(void **event) { return cudaEventCreateWithFlags(event, 0); }
REVATI_API int cudaEventDestroy(void *event) { delete static_cast<Event *>(event); return kSuccess; }
REVATI_API int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) {
  auto *e = static_cast<Event *>(event);
  Stream *s = stream_of(stream);
  host_call();
  if (s->capture && flags & kExternal) { record_in_graph(e, s); return kSuccess; }
  e->capture = s->capture;
  e->capture_id = s->capture_id;
  if (!s->capture) record(e, s);
  return kSuccess;
}
REVATI_API int cudaEventRecord(void *event, void *stream) { return cudaEventRecordWithFlags(event, stream, 0); }
REVATI_API int cudaEventQuery(void *event) { return done(static_cast<Event *>(event)) ? kSuccess : kNotReady; }
REVATI_API int cudaEventSynchronize(void *event) { synchronize(static_cast<Event *>(event)); return kSuccess; }
REVATI_API int cudaEventElapsedTime(float *ms, void *start, void *end) {
  const auto &from = static_cast<Event *>(start)->record, &to = static_cast<Event *>(end)->record;
  if (!from || !to) return report(kInvalidHandle);
  if (!done(static_cast<Event *>(start)) || !done(static_cast<Event *>(end))) return kNotReady;
  const ns_t elapsed = to->time - from->time;
  *ms = std::max<ns_t>(elapsed, 1000) * 1e-6f;  // callers that tune divide by it
  return kSuccess;
}
REVATI_API int cudaEventElapsedTime_v2(float *ms, void *start, void *end) { return cudaEventElapsedTime(ms, start, end); }
REVATI_API int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
  Stream *s = stream_of(stream);
  auto *e = static_cast<Event *>(event);
  if (s->capture && flags & kExternal) return report(kNotSupported);  // a graph that waits for other streams
  if (e->capture && !s->capture) {
    if (!captured(e->capture_id)) return report(kCapturedEvent);
    s->capture = e->capture;
    s->capture_id = e->capture_id;
    s->capture_origin = false;
  } else if (!s->capture) {
    follow(s, e);
  }
  return kSuccess;
}
struct IpcEventHandle { char bytes[64]; };
REVATI_API int cudaIpcGetEventHandle(IpcEventHandle *handle, void *event) { std::memset(handle, 0, sizeof *handle); std::memcpy(handle->bytes, &event, sizeof event); return kSuccess; }

// ---- graphs ----
REVATI_API int cudaStreamBeginCapture(void *stream, int) {
  static uint64_t next_id = 0;
  Stream *s = stream_of(stream);
  s->capture = new Graph;
  s->capture_id = ++next_id;
  s->capture_origin = true;
  return kSuccess;
}
REVATI_API int cudaStreamEndCapture(void *stream, void **graph) {
  Stream *s = stream_of(stream);
  *graph = s->capture;
  const uint64_t id = s->capture_id;
  for (Stream *other : streams())
    if (other->capture_id == id) { other->capture = nullptr; other->capture_id = 0; }
  return kSuccess;
}
REVATI_API int cudaStreamIsCapturing(void *stream, int *status) { *status = stream_of(stream)->capture ? 1 : 0; return kSuccess; }
REVATI_API int cudaStreamGetCaptureInfo(void *stream, int *status, unsigned long long *id, void **graph, const void ***dependencies, const void **edges, size_t *count) {
  Stream *s = stream_of(stream);
  *status = s->capture ? 1 : 0;
  if (id) *id = s->capture_id;
  if (graph) *graph = s->capture;
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return kSuccess;
}
REVATI_API int cudaStreamUpdateCaptureDependencies(void *, void *, const void *, size_t, unsigned) { return kSuccess; }
REVATI_API int cudaThreadExchangeStreamCaptureMode(int *mode) { thread_local int current = 0; std::swap(*mode, current); return kSuccess; }
REVATI_API int cudaGraphCreate(void **graph, unsigned) { *graph = new Graph; return kSuccess; }
REVATI_API int cudaGraphDestroy(void *graph) { delete static_cast<Graph *>(graph); return kSuccess; }
REVATI_API int cudaGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long) {
  const auto *g = static_cast<Graph *>(graph);
  *exec = new Graph(*g);
  charge_memory(current_device(), static_cast<int64_t>(g->nodes.size() * gpu().graph_node_bytes));
  return kSuccess;
}
REVATI_API int cudaGraphInstantiate(void **exec, void *graph, unsigned long long flags) { return cudaGraphInstantiateWithFlags(exec, graph, flags); }
REVATI_API int cudaGraphExecDestroy(void *exec) {
  const auto *g = static_cast<Graph *>(exec);
  charge_memory(current_device(), -static_cast<int64_t>(g->nodes.size() * gpu().graph_node_bytes));
  delete g;
  return kSuccess;
}
REVATI_API int cudaGraphUpload(void *, void *) { return kSuccess; }
REVATI_API int cudaGraphLaunch(void *exec, void *stream) { replay(stream_of(stream), static_cast<Graph *>(exec)); return kSuccess; }
REVATI_API int cudaGraphGetNodes(void *graph, void **nodes, size_t *count) {
  auto *g = static_cast<Graph *>(graph);
  if (nodes)
    for (size_t i = 0; i < std::min(*count, g->nodes.size()); ++i) nodes[i] = &g->nodes[i];
  *count = g->nodes.size();
  return kSuccess;
}
REVATI_API int cudaGraphNodeGetType(void *, int *type) { *type = 0; return kSuccess; }  // kernels only
REVATI_API int cudaGraphDebugDotPrint(void *, const char *, unsigned) { return kSuccess; }

// ---- kernels ----
REVATI_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) { pushed = {grid, block, shared, stream}; return 0; }
REVATI_API int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void **stream) {
  *grid = pushed.grid; *block = pushed.block; *shared = pushed.shared; *stream = pushed.stream;
  return kSuccess;
}
REVATI_API int __cudaGetKernel(const void **kernel, const void *function) { *kernel = function; return kSuccess; }
REVATI_API int __cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) { return launch(kernel, grid, block, arguments, shared, stream); }
REVATI_API int cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) { return launch(function, grid, block, arguments, shared, stream); }
REVATI_API int cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) { return launch(function, grid, block, arguments, shared, stream); }
struct LaunchConfig { dim3 grid, block; size_t shared; void *stream; void *attributes; unsigned count; };
REVATI_API int cudaLaunchKernelExC(const LaunchConfig *c, const void *function, void **arguments) { return launch(function, c->grid, c->block, arguments, c->shared, c->stream); }
REVATI_API int cudaFuncGetAttributes(void *out, const void *) {
  struct Attributes { size_t shared, constant, local; int max_threads, registers, ptx, binary, cache, max_dynamic, carveout, cluster, reserved[32]; };
  Attributes a{};
  a.max_threads = 1024; a.registers = 32; a.ptx = a.binary = 90; a.max_dynamic = attribute(97);
  std::memcpy(out, &a, 24 + 15 * 4);
  return kSuccess;
}
REVATI_API int cudaFuncSetAttribute(const void *, int, int) { return kSuccess; }
REVATI_API int cudaFuncSetCacheConfig(const void *, int) { return kSuccess; }
REVATI_API int cudaFuncGetName(const char **name, const void *function) { *name = kernel_name(function); return *name ? kSuccess : report(98); }
REVATI_API int cudaGetFuncBySymbol(const void **out, const void *function) { *out = function; return kSuccess; }
REVATI_API int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int threads, size_t shared, unsigned) {
  const int by_threads = attribute(39) / std::max(threads, 1);
  const int by_shared = shared ? static_cast<int>(static_cast<size_t>(attribute(81)) / (shared + 1024)) : attribute(106);
  *blocks = std::max(1, std::min({by_threads, by_shared, attribute(106)}));
  return kSuccess;
}
REVATI_API int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}
REVATI_API int cudaOccupancyMaxActiveClusters(int *clusters, const void *, const void *) { *clusters = attribute(16) / 2; return kSuccess; }
REVATI_API int cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version, unsigned long long, int *status) {
  using Lookup = void *(*)(const char *, int);
  static const auto lookup = reinterpret_cast<Lookup>(dlsym(RTLD_DEFAULT, "revati_driver_entry_point"));
  *function = lookup ? lookup(symbol, static_cast<int>(version)) : nullptr;
  if (status) *status = *function ? 0 : 1;
  return *function ? kSuccess : report(500);
}
REVATI_API int cudaGetDriverEntryPoint(const char *symbol, void **function, unsigned long long flags, int *status) { return cudaGetDriverEntryPointByVersion(symbol, function, kCudaVersion, flags, status); }

// ---- registration of the kernels compiled into extension modules ----
REVATI_API void **__cudaRegisterFatBinary(void *) { return new void *(nullptr); }
REVATI_API void __cudaRegisterFatBinaryEnd(void **) {}
REVATI_API void __cudaUnregisterFatBinary(void **) {}
REVATI_API char __cudaInitModule(void **) { return 1; }
REVATI_API void __cudaRegisterFunction(void **, const char *host, char *, const char *name, int, void *, void *, void *, void *, int *) { register_kernel(host, name); }
REVATI_API void __cudaRegisterVar(void **, char *host, char *, const char *, int, size_t bytes, int, int) { register_symbol(host, bytes); }
