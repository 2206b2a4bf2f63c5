#include "cutlass.h"

#include <cstring>
#include <string>
#include <unordered_map>

#include "blas_types.h"

namespace {

struct Kernel { const char *types = nullptr; bool swapped = false; int shape_at = 0; };

// The first mangled data type in `text`, as a cudaDataType; -1: none that is known.
int first_type(const char *text) {
  static const struct { const char *mangled; int type; } known[] = {
    {"NS_12float_e4m3_tE", 28}, {"NS_10bfloat16_tE", 14}, {"NS_6half_tE", 2}};
  const char *first = nullptr;
  int type = -1;
  for (const auto &one : known) {
    const char *at = text ? std::strstr(text, one.mangled) : nullptr;
    if (at && (!first || at < first)) { first = at; type = one.type; }
  }
  return type;
}

const char *after(const char *text, const char *part) {
  const char *at = std::strstr(text, part);
  return at ? at + std::strlen(part) : nullptr;
}

bool contains(const char *text, const char *part) { return std::strstr(text, part) != nullptr; }

Kernel product(const char *operand, const char *result, bool swapped, int shape_at) {
  const int in = first_type(operand), out = first_type(result);
  if (in < 0 || out < 0 || shape_at < 0) return {};
  return {revati_blas::types(in, out, 1, 0), swapped, shape_at};
}

// Where {m, n, k} stand in a Hopper kernel's parameters, in ints: at the beginning, or behind the mode where the
// kernel is persistent; -1: not known of its schedule.
int place_on_hopper(const char *name) {
  if (contains(name, "24KernelTmaWarpSpecializedE") || contains(name, "36KernelTmaWarpSpecializedFP8FastAccumE")) return 0;
  if (contains(name, "KernelTmaWarpSpecializedPingpong") || contains(name, "KernelTmaWarpSpecializedCooperative")) return 1;
  return -1;
}

// A CUTLASS kernel's only parameter is a struct by value.  vLLM 0.26 has products of three generations:
// - Hopper: cutlass_3x_gemm[_sm90_fp8]<operand, result, epilogue, …, swapped>;
// - Blackwell: a GemmUniversal, whose operands' type stands in its main loop and the result's in its epilogue; a
//   result that is column-major tells that operands are swapped;
// - Ada: a CUTLASS 2 kernel, whose operands' type comes first and whose result is stored by its visitor.
Kernel parse(const char *name) {
  if (!std::strncmp(name, "_ZN7cutlass13device_kernelI", 27)) {
    if (const char *wrapper = after(name, "cutlass_3x_gemm")) {
      const char *operand = std::strchr(wrapper, 'I');
      if (!operand || std::strncmp(operand + 1, "NS_12float_e4m3_tE", 18)) return {};
      return product(operand, operand + 19, contains(operand, "Lb1EE10GemmKernel"), place_on_hopper(name));
    }
    const char *main_loop = after(name, "21enable_sm100_to_sm120INS_4gemm6kernel13GemmUniversal");
    const char *epilogue = main_loop ? after(main_loop, "18CollectiveEpilogue") : nullptr;
    if (epilogue) return product(main_loop, epilogue, contains(epilogue, "_llEEE"), 1);
  }
  if (const char *operand = after(name, "_ZN7cutlass7Kernel2I19enable_sm89_to_sm90INS_4gemm6kernel22DefaultGemmWithVisitor")) {
    if (contains(operand, "25ThreadblockSwizzleStreamK")) return product(operand, after(operand, "15VisitorAuxStore"), false, 29);
  }
  return {};
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
