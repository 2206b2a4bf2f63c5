// The CUDA runtime: kernels, their launches, and the registration of those compiled into extension modules.
#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "../core/core.h"
#include "cuda_version.h"
#include "cudart.h"
#include "cutlass.h"
#include "kernels.h"

using namespace revati;

namespace {

struct dim3 { unsigned x, y, z; };
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

REVATI_API void **__cudaRegisterFatBinary(void *) { return new void *(nullptr); }
REVATI_API void __cudaRegisterFatBinaryEnd(void **) {}
REVATI_API void __cudaUnregisterFatBinary(void **) {}
REVATI_API char __cudaInitModule(void **) { return 1; }
REVATI_API void __cudaRegisterFunction(void **, const char *host, char *, const char *name, int, void *, void *, void *, void *, int *) { register_kernel(host, name); }
REVATI_API void __cudaRegisterVar(void **, char *host, char *, const char *, int, size_t bytes, int, int) { register_symbol(host, bytes); }
