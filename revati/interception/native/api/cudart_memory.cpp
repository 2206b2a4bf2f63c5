// The CUDA runtime: memory, copies, pools and what processes share.
#include <cstring>

#include "../core/stream.h"
#include "cudart.h"
#include "kernels.h"

using namespace revati;

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
