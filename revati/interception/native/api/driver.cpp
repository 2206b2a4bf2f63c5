// libcuda.so.1: the CUDA driver API as torch, Triton and their launchers call it.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "../core/stream.h"

using namespace revati;

namespace {

enum Result { kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kInvalidDevice = 101, kInvalidContext = 201,
              kInvalidHandle = 400, kNotFound = 500, kNotReady = 600 };

struct Context { int device; };
struct Module { int unused; };
struct Function { std::string name; Module *module; };

Context contexts[64];
thread_local Context *current = nullptr;

Context *primary(int device) { contexts[device].device = device; return &contexts[device]; }
void enter(Context *context) { current = context; if (context) set_current_device(context->device); }

int function_attribute(int *value, int attribute) {
  switch (attribute) {
    case 0: *value = 1024; return kSuccess;                            // max threads per block
    case 4: *value = 32; return kSuccess;                              // registers
    case 5: case 6: *value = 90; return kSuccess;                      // PTX and binary version
    case 8: *value = gpu().attributes.at(97); return kSuccess;         // max dynamic shared memory
    default: *value = 0; return kSuccess;
  }
}

int launch(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream) {
  const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
  launch_kernel(stream, f->name.c_str(), grid, block, shared);
  return kSuccess;
}

}  // namespace

// ---- initialisation, devices, contexts ----
REVATI_API int cuInit(unsigned) { gpu(); return kSuccess; }
REVATI_API int cuDriverGetVersion(int *version) { *version = gpu().cuda_driver_version; return kSuccess; }
REVATI_API int cuDeviceGetCount(int *count) { *count = gpu().count; return kSuccess; }
REVATI_API int cuDeviceGet(int *device, int ordinal) {
  if (ordinal < 0 || ordinal >= gpu().count) return kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}
REVATI_API int cuDeviceGetName(char *name, int length, int) { std::snprintf(name, static_cast<size_t>(length), "%s", gpu().name.c_str()); return kSuccess; }
REVATI_API int cuDeviceGetAttribute(int *value, int attribute, int device) {
  const auto found = gpu().attributes.find(attribute);
  if (found == gpu().attributes.end()) {
    // Newer queries exist for features that a description need not list; the driver answers them with 0.
    *value = 0;
    return attribute > 101 ? kSuccess : kInvalidValue;
  }
  *value = found->second + (attribute == 33 ? device : 0);
  return kSuccess;
}
REVATI_API int cuDeviceComputeCapability(int *major, int *minor, int) { *major = gpu().attributes.at(75); *minor = gpu().attributes.at(76); return kSuccess; }
REVATI_API int cuDeviceTotalMem_v2(size_t *bytes, int) { *bytes = gpu().memory_bytes; return kSuccess; }
REVATI_API int cuDeviceGetUuid(char *uuid, int device) { std::memset(uuid, 0, 16); uuid[15] = static_cast<char>(device + 1); return kSuccess; }
REVATI_API int cuDeviceGetUuid_v2(char *uuid, int device) { return cuDeviceGetUuid(uuid, device); }
REVATI_API int cuDeviceGetPCIBusId(char *id, int length, int device) {
  std::snprintf(id, static_cast<size_t>(length), "%04x:%02x:%02x.0", gpu().attributes.at(50), gpu().attributes.at(33) + device, gpu().attributes.at(34));
  return kSuccess;
}
REVATI_API int cuDeviceCanAccessPeer(int *can, int device, int peer) { *can = device != peer; return kSuccess; }
REVATI_API int cuDevicePrimaryCtxRetain(void **context, int device) { *context = primary(device); return kSuccess; }
REVATI_API int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
REVATI_API int cuDevicePrimaryCtxGetState(int, unsigned *flags, int *active) { *flags = 0; *active = 1; return kSuccess; }
REVATI_API int cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return kSuccess; }
REVATI_API int cuCtxCreate_v2(void **context, unsigned, int device) { enter(primary(device)); *context = current; return kSuccess; }
REVATI_API int cuCtxDestroy_v2(void *) { return kSuccess; }
REVATI_API int cuCtxGetCurrent(void **context) { *context = current ? current : primary(current_device()); return kSuccess; }
REVATI_API int cuCtxSetCurrent(void *context) { enter(static_cast<Context *>(context)); return kSuccess; }
REVATI_API int cuCtxPushCurrent_v2(void *context) { enter(static_cast<Context *>(context)); return kSuccess; }
REVATI_API int cuCtxPopCurrent_v2(void **context) { if (context) *context = current; return kSuccess; }
REVATI_API int cuCtxGetDevice(int *device) { *device = current ? current->device : current_device(); return kSuccess; }
REVATI_API int cuCtxGetLimit(size_t *value, int) { *value = 1024; return kSuccess; }
REVATI_API int cuCtxSetLimit(int, size_t) { return kSuccess; }
REVATI_API int cuCtxGetApiVersion(void *, unsigned *version) { *version = 3020; return kSuccess; }
REVATI_API int cuCtxResetPersistingL2Cache() { return kSuccess; }
REVATI_API int cuCtxEnablePeerAccess(void *, unsigned) { return kSuccess; }
REVATI_API int cuCtxSynchronize() { synchronize_device(current_device()); return kSuccess; }
REVATI_API int cuGetErrorString(int result, const char **text) { *text = result == kSuccess ? "no error" : "CUDA driver error (revati)"; return kSuccess; }
REVATI_API int cuGetErrorName(int result, const char **text) { *text = result == kSuccess ? "CUDA_SUCCESS" : "CUDA_ERROR"; return kSuccess; }

// ---- modules and kernels ----
REVATI_API int cuModuleLoadData(void **module, const void *) { *module = new Module; return kSuccess; }
REVATI_API int cuModuleLoadDataEx(void **module, const void *, unsigned, int *, void **) { *module = new Module; return kSuccess; }
REVATI_API int cuModuleLoad(void **module, const char *) { *module = new Module; return kSuccess; }
REVATI_API int cuModuleUnload(void *) { return kSuccess; }
REVATI_API int cuModuleGetFunction(void **function, void *module, const char *name) { *function = new Function{name, static_cast<Module *>(module)}; return kSuccess; }
REVATI_API int cuModuleGetGlobal_v2(void **pointer, size_t *bytes, void *, const char *) {
  constexpr size_t kGlobalBytes = 1 << 20;
  *pointer = device_alloc(kGlobalBytes, current_device(), false);
  if (bytes) *bytes = kGlobalBytes;
  return kSuccess;
}
REVATI_API int cuLibraryLoadData(void **library, const void *, int *, void **, unsigned, int *, void **, unsigned) { *library = new Module; return kSuccess; }
REVATI_API int cuLibraryUnload(void *) { return kSuccess; }
REVATI_API int cuLibraryGetKernel(void **kernel, void *library, const char *name) { return cuModuleGetFunction(kernel, library, name); }
REVATI_API int cuLibraryGetModule(void **module, void *library) { *module = library; return kSuccess; }
REVATI_API int cuKernelGetFunction(void **function, void *kernel) { *function = kernel; return kSuccess; }
REVATI_API int cuKernelGetAttribute(int *value, int attribute, void *, int) { return function_attribute(value, attribute); }
REVATI_API int cuKernelSetAttribute(int, int, void *, int) { return kSuccess; }
REVATI_API int cuFuncGetAttribute(int *value, int attribute, void *) { return function_attribute(value, attribute); }
REVATI_API int cuFuncSetAttribute(void *, int, int) { return kSuccess; }
REVATI_API int cuFuncSetCacheConfig(void *, int) { return kSuccess; }
REVATI_API int cuFuncGetName(const char **name, void *function) { *name = static_cast<Function *>(function)->name.c_str(); return kSuccess; }
REVATI_API int cuFuncGetModule(void **module, void *function) { *module = static_cast<Function *>(function)->module; return kSuccess; }
REVATI_API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int threads, size_t) { *blocks = threads > 0 ? 2048 / threads : 1; return kSuccess; }
REVATI_API int cuOccupancyMaxActiveClusters(int *clusters, void *, const void *) { *clusters = gpu().attributes.at(16) / 2; return kSuccess; }
REVATI_API int cuTensorMapEncodeTiled(void *map, ...) { std::memset(map, 0, 128); return kSuccess; }
REVATI_API int cuTensorMapEncodeIm2col(void *map, ...) { std::memset(map, 0, 128); return kSuccess; }
REVATI_API int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream, void **, void **) {
  return launch(static_cast<Function *>(function), gx, gy, gz, bx, by, bz, shared, stream);
}
REVATI_API int cuLaunchCooperativeKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream, void **) {
  return launch(static_cast<Function *>(function), gx, gy, gz, bx, by, bz, shared, stream);
}
struct LaunchConfig { unsigned gx, gy, gz, bx, by, bz, shared; void *stream; void *attributes; unsigned count; };
REVATI_API int cuLaunchKernelEx(const LaunchConfig *c, void *function, void **, void **) {
  return launch(static_cast<Function *>(function), c->gx, c->gy, c->gz, c->bx, c->by, c->bz, c->shared, c->stream);
}

// ---- memory ----
REVATI_API int cuMemAlloc_v2(void **pointer, size_t bytes) { *pointer = device_alloc(bytes, current_device()); return *pointer ? kSuccess : kOutOfMemory; }
REVATI_API int cuMemAllocAsync(void **pointer, size_t bytes, void *) { return cuMemAlloc_v2(pointer, bytes); }
REVATI_API int cuMemFree_v2(void *pointer) { return release(pointer) ? kSuccess : kInvalidValue; }
REVATI_API int cuMemFreeAsync(void *pointer, void *) { return cuMemFree_v2(pointer); }
REVATI_API int cuMemAllocHost_v2(void **pointer, size_t bytes) { *pointer = host_alloc(bytes); return kSuccess; }
REVATI_API int cuMemHostAlloc(void **pointer, size_t bytes, unsigned) { *pointer = host_alloc(bytes); return kSuccess; }
REVATI_API int cuMemFreeHost(void *pointer) { return cuMemFree_v2(pointer); }
REVATI_API int cuMemHostGetDevicePointer_v2(void **device, void *host, unsigned) { *device = host; return kSuccess; }
REVATI_API int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { memory_info(current_device(), free_bytes, total); return kSuccess; }
REVATI_API int cuMemGetAddressRange_v2(void **base, size_t *bytes, void *pointer) {
  const Allocation *found = find_allocation(pointer);
  if (!found) return kInvalidValue;
  if (base) *base = reinterpret_cast<void *>(found->base);
  if (bytes) *bytes = found->bytes;
  return kSuccess;
}
REVATI_API int cuMemcpyHtoD_v2(void *dst, const void *src, size_t bytes) { copy_async(dst, src, bytes, nullptr); synchronize(stream_of(nullptr)); return kSuccess; }
REVATI_API int cuMemcpyDtoH_v2(void *dst, const void *src, size_t bytes) { return cuMemcpyHtoD_v2(dst, src, bytes); }
REVATI_API int cuMemcpyDtoD_v2(void *dst, const void *src, size_t bytes) { copy_async(dst, src, bytes, nullptr); return kSuccess; }
REVATI_API int cuMemcpyHtoDAsync_v2(void *dst, const void *src, size_t bytes, void *stream) { copy_async(dst, src, bytes, stream); return kSuccess; }
REVATI_API int cuMemcpyDtoHAsync_v2(void *dst, const void *src, size_t bytes, void *stream) { copy_async(dst, src, bytes, stream); return kSuccess; }
REVATI_API int cuMemcpyDtoDAsync_v2(void *dst, const void *src, size_t bytes, void *stream) { copy_async(dst, src, bytes, stream); return kSuccess; }
REVATI_API int cuMemcpyAsync(void *dst, const void *src, size_t bytes, void *stream) { copy_async(dst, src, bytes, stream); return kSuccess; }
REVATI_API int cuMemsetD8Async(void *dst, unsigned char value, size_t count, void *stream) { fill(dst, value, count); launch_copy(stream, "memset", static_cast<int64_t>(count)); return kSuccess; }
REVATI_API int cuMemsetD32_v2(void *dst, unsigned value, size_t count) {
  if (count * 4 <= kMetadataBytes) for (size_t i = 0; i < count; ++i) static_cast<unsigned *>(dst)[i] = value;
  launch_copy(nullptr, "memset", static_cast<int64_t>(count * 4));
  return kSuccess;
}
REVATI_API int cuMemsetD32Async(void *dst, unsigned value, size_t count, void *stream) {
  if (count * 4 <= kMetadataBytes) for (size_t i = 0; i < count; ++i) static_cast<unsigned *>(dst)[i] = value;
  launch_copy(stream, "memset", static_cast<int64_t>(count * 4));
  return kSuccess;
}
REVATI_API int cuPointerGetAttribute(void *out, int attribute, void *pointer) {
  const Allocation *found = find_allocation(pointer);
  if (!found) return kInvalidValue;
  switch (attribute) {
    case 1: *static_cast<void **>(out) = primary(found->device); return kSuccess;                       // context
    case 2: *static_cast<unsigned *>(out) = found->space == Space::kDevice ? 2 : 1; return kSuccess;   // memory type
    case 3: case 4: *static_cast<void **>(out) = pointer; return kSuccess;                              // device, host pointer
    case 7: *static_cast<uint64_t *>(out) = found->base; return kSuccess;                               // buffer id
    case 8: *static_cast<int *>(out) = 0; return kSuccess;                                              // managed
    case 9: *static_cast<int *>(out) = found->device; return kSuccess;                                  // ordinal
    case 11: *static_cast<uint64_t *>(out) = found->base; return kSuccess;                              // range start
    case 12: *static_cast<uint64_t *>(out) = found->bytes; return kSuccess;                             // range size
    default: return kInvalidValue;
  }
}

// ---- streams and events: the runtime's objects serve both APIs ----
REVATI_API int cuStreamCreate(void **stream, unsigned flags) { auto *s = new Stream; s->device = current_device(); s->flags = flags; streams().push_back(s); *stream = s; return kSuccess; }
REVATI_API int cuStreamSynchronize(void *stream) { host_call(); synchronize(stream_of(stream)); return kSuccess; }
REVATI_API int cuStreamQuery(void *stream) { return done(stream_of(stream)) ? kSuccess : kNotReady; }
REVATI_API int cuStreamGetCtx(void *stream, void **context) { *context = primary(stream_of(stream)->device); return kSuccess; }
REVATI_API int cuStreamIsCapturing(void *stream, int *status) { *status = stream_of(stream)->capture ? 1 : 0; return kSuccess; }
REVATI_API int cuStreamGetCaptureInfo_v2(void *stream, int *status, uint64_t *id, void **graph, const void **dependencies, size_t *count) {
  Stream *s = stream_of(stream);
  *status = s->capture ? 1 : 0;
  if (id) *id = s->capture_id;
  if (graph) *graph = s->capture;
  if (dependencies) *dependencies = nullptr;
  if (count) *count = 0;
  return kSuccess;
}
REVATI_API int cuEventCreate(void **event, unsigned) { auto *e = new Event; e->device = current_device(); *event = e; return kSuccess; }
REVATI_API int cuEventDestroy_v2(void *event) { delete static_cast<Event *>(event); return kSuccess; }

// ---- look-up by name: unknown names are "not found", so that callers can fall back as on older drivers ----
REVATI_API void *revati_driver_entry_point(const char *symbol, int) {
  static void *self = [] {
    Dl_info info;
    dladdr(reinterpret_cast<void *>(&cuInit), &info);
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  for (const char *suffix : {"_v2", ""}) {
    const std::string name = std::string(symbol) + suffix;
    if (void *function = dlsym(self, name.c_str())) return function;
  }
  return nullptr;
}
REVATI_API int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t, int *status) {
  *function = revati_driver_entry_point(symbol, version);
  if (status) *status = *function ? 0 : 1;
  return *function ? kSuccess : kNotFound;
}
REVATI_API int cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags) { return cuGetProcAddress_v2(symbol, function, version, flags, nullptr); }
// Undocumented tables that a statically linked runtime asks for; without them it falls back.
REVATI_API int cuGetExportTable(const void **table, const void *) { *table = nullptr; return kNotFound; }
