#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "core.h"

namespace revati {
namespace {

GpuDescription parse(const char *text) {
  GpuDescription gpu;
  std::istringstream fields(text);
  std::string field;
  while (std::getline(fields, field, ';')) {
    const size_t equals = field.find('=');
    if (equals == std::string::npos) continue;
    const std::string key = field.substr(0, equals), value = field.substr(equals + 1);
    auto number = [&] { return std::strtoull(value.c_str(), nullptr, 10); };
    if (key == "name") gpu.name = value;
    else if (key == "uuid_prefix") gpu.uuid_prefix = value;
    else if (key == "driver_version") gpu.driver_version = value;
    else if (key == "count") gpu.count = static_cast<int>(number());
    else if (key == "cuda_driver_version") gpu.cuda_driver_version = static_cast<int>(number());
    else if (key == "memory_bytes") gpu.memory_bytes = number();
    else if (key == "nvml_memory_bytes") gpu.nvml_memory_bytes = number();
    else if (key == "context_bytes") gpu.context_bytes = number();
    else if (key == "graph_node_bytes") gpu.graph_node_bytes = number();
    else if (key == "library_bytes") gpu.library_bytes = number();
    else if (key == "communicator_bytes") gpu.communicator_bytes = number();
    else if (key == "nvlink_links") gpu.nvlink_links = static_cast<int>(number());
    else if (key.rfind("attr.", 0) == 0) gpu.attributes[std::atoi(key.c_str() + 5)] = std::atoi(value.c_str());
    else {
      std::fprintf(stderr, "revati: unknown field '%s' in REVATI_GPU\n", key.c_str());
      std::abort();
    }
  }
  if (gpu.count < 1 || gpu.memory_bytes == 0) {
    std::fprintf(stderr, "revati: REVATI_GPU describes no GPU (count and memory_bytes are needed)\n");
    std::abort();
  }
  return gpu;
}

thread_local int device = 0;

GpuDescription &description() {
  static GpuDescription current = [] {
    const char *text = std::getenv("REVATI_GPU");
    if (!text) {
      std::fprintf(stderr,
                   "revati: the CUDA stand-ins are loaded but REVATI_GPU is not set; start this program "
                   "through revati\n");
      std::abort();
    }
    return parse(text);
  }();
  return current;
}

}  // namespace

const GpuDescription &gpu() { return description(); }

int current_device() { return device; }

bool set_current_device(int ordinal) {
  if (ordinal < 0 || ordinal >= gpu().count) return false;
  device = ordinal;
  return true;
}

int unimplemented(const char *api) {
  std::fprintf(stderr, "revati: %s is not emulated; the call fails\n", api);
  return 801;  // cudaErrorNotSupported, and an error in every other API that we stand in for
}

}  // namespace revati

int revati_unimplemented(const char *api) { return revati::unimplemented(api); }

// A forked engine takes its own GPUs' description; before it asks anything about them.
REVATI_API void revati_configure(const char *text) { revati::description() = revati::parse(text); }
