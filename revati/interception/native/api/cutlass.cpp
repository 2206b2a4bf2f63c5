#include "cutlass.h"

#include <cstring>
#include <string>
#include <unordered_map>

#include "blas_types.h"

namespace {

struct Kernel { const char *types = nullptr; bool swapped = false; int shape_at = 0; };

// One of the mangled data types that `name` begins with, as a cudaDataType; -1: another.  Skips it.
int take_type(const char *&name) {
  static const struct { const char *mangled; int type; } known[] = {
    {"NS_12float_e4m3_tE", 28}, {"NS_10bfloat16_tE", 14}, {"NS_6half_tE", 2}, {"a", 3}};
  for (const auto &one : known) {
    if (std::strncmp(name, one.mangled, std::strlen(one.mangled))) continue;
    name += std::strlen(one.mangled);
    return one.type;
  }
  return -1;
}

bool contains(const char *text, const char *part) { return std::strstr(text, part) != nullptr; }

// A CUTLASS 3 kernel's only parameter is a struct by value, in which {m, n, k, batch} stand at the beginning, or
// behind the mode where the kernel is persistent.  In ints; -1: not known of its schedule.
int place_of_shape(const char *name) {
  if (contains(name, "24KernelTmaWarpSpecializedE") || contains(name, "36KernelTmaWarpSpecializedFP8FastAccumE")) return 0;
  if (contains(name, "KernelTmaWarpSpecializedPingpong") || contains(name, "KernelTmaWarpSpecializedCooperative")) return 1;
  return -1;
}

// vLLM's wrappers, cutlass_3x_gemm[_sm90_fp8]<operand, result, epilogue, …, swapped>, name types and order.
Kernel parse(const char *name) {
  const char *at = std::strstr(name, "cutlass_3x_gemm");
  if (std::strncmp(name, "_ZN7cutlass13device_kernelI", 27) || !at || !(at = std::strchr(at, 'I'))) return {};
  ++at;
  const int operand = take_type(at), result = take_type(at);
  const int shape_at = place_of_shape(name);
  if (operand < 0 || result < 0 || shape_at < 0) return {};
  return {revati_blas::types(operand, result, 1, 0), contains(at, "Lb1EE10GemmKernel"), shape_at};
}

}  // namespace

CutlassProduct cutlass_product(const char *mangled_name, void **arguments) {
  static std::unordered_map<const char *, Kernel> kernels;
  std::lock_guard<std::recursive_mutex> lock(revati::mutex);
  const auto [found, added] = kernels.try_emplace(mangled_name);
  if (added) found->second = parse(mangled_name);
  const Kernel kernel = found->second;
  if (!kernel.types || !arguments || !arguments[0]) return {nullptr, 0, 0, 0};
  const auto *shape = static_cast<const int32_t *>(arguments[0]) + kernel.shape_at;
  // Where tokens are few the weights come first, since tiles are higher than wide.
  if (kernel.swapped) return {kernel.types, shape[1], shape[0], shape[2]};
  return {kernel.types, shape[0], shape[1], shape[2]};
}
