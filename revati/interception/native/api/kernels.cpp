#include "kernels.h"

#include "../core/core.h"

namespace {
struct Symbol { size_t bytes; void *device; };
// Registration runs in static constructors, before this file's own: function-local statics.
std::unordered_map<const void *, const char *> &kernels() { static auto *map = new std::unordered_map<const void *, const char *>; return *map; }
std::unordered_map<const void *, Symbol> &symbols() { static auto *map = new std::unordered_map<const void *, Symbol>; return *map; }
}  // namespace

void register_kernel(const void *host_function, const char *mangled_name) { kernels()[host_function] = mangled_name; }

const char *kernel_name(const void *host_function) {
  const auto found = kernels().find(host_function);
  return found == kernels().end() ? nullptr : found->second;
}

void register_symbol(const void *host_variable, size_t bytes) { symbols()[host_variable] = {bytes, nullptr}; }

void *symbol_address(const void *host_variable) {
  const auto found = symbols().find(host_variable);
  if (found == symbols().end()) return nullptr;
  if (!found->second.device) found->second.device = revati::device_alloc(found->second.bytes, revati::current_device(), false);
  return found->second.device;
}
