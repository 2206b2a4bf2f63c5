// libnvidia-ml.so.1: what the frameworks ask before they touch CUDA.
#include <cstdio>
#include <cstring>

#include "../core/core.h"

using namespace revati;

namespace {
enum Return { kSuccess = 0, kInvalidArgument = 2, kNotSupported = 3, kInsufficientSize = 7 };

int index_of(void *handle) { return static_cast<int>(reinterpret_cast<uintptr_t>(handle)) - 1; }
int write(char *out, unsigned length, const std::string &text) {
  if (text.size() + 1 > length) return kInsufficientSize;
  std::memcpy(out, text.c_str(), text.size() + 1);
  return kSuccess;
}
struct PciInfo { char legacy_id[16]; unsigned domain, bus, device, pci_device_id, subsystem_id; char id[32]; };
}  // namespace

REVATI_API int nvmlInit_v2() { gpu(); return kSuccess; }
REVATI_API int nvmlInitWithFlags(unsigned) { return nvmlInit_v2(); }
REVATI_API int nvmlInit() { return nvmlInit_v2(); }
REVATI_API int nvmlShutdown() { return kSuccess; }
REVATI_API const char *nvmlErrorString(int result) { return result == kSuccess ? "Success" : "NVML error (revati)"; }
REVATI_API int nvmlSystemGetDriverVersion(char *out, unsigned length) { return write(out, length, gpu().driver_version); }
REVATI_API int nvmlSystemGetCudaDriverVersion(int *version) { *version = gpu().cuda_driver_version; return kSuccess; }
REVATI_API int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }
REVATI_API int nvmlDeviceGetCount_v2(unsigned *count) { *count = static_cast<unsigned>(gpu().count); return kSuccess; }
REVATI_API int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }
REVATI_API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  if (static_cast<int>(index) >= gpu().count) return kInvalidArgument;
  *device = reinterpret_cast<void *>(static_cast<uintptr_t>(index) + 1);
  return kSuccess;
}
REVATI_API int nvmlDeviceGetHandleByIndex(unsigned index, void **device) { return nvmlDeviceGetHandleByIndex_v2(index, device); }
REVATI_API int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) {
  unsigned domain = 0, bus = 0;
  std::sscanf(id, "%x:%x", &domain, &bus);
  return nvmlDeviceGetHandleByIndex_v2(bus - static_cast<unsigned>(gpu().attributes.at(33)), device);
}
REVATI_API int nvmlDeviceGetIndex(void *device, unsigned *index) { *index = static_cast<unsigned>(index_of(device)); return kSuccess; }
REVATI_API int nvmlDeviceGetName(void *, char *out, unsigned length) { return write(out, length, gpu().name); }
REVATI_API int nvmlDeviceGetUUID(void *device, char *out, unsigned length) {
  char uuid[64];
  std::snprintf(uuid, sizeof uuid, "GPU-%s-%012d", gpu().uuid_prefix.c_str(), index_of(device));
  return write(out, length, uuid);
}
REVATI_API int nvmlDeviceGetCudaComputeCapability(void *, int *major, int *minor) { *major = gpu().attributes.at(75); *minor = gpu().attributes.at(76); return kSuccess; }
REVATI_API int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *info) {
  size_t free_bytes, total;
  memory_info(index_of(device), &free_bytes, &total);
  info[0] = gpu().nvml_memory_bytes;
  info[1] = gpu().nvml_memory_bytes - (total - free_bytes);
  info[2] = total - free_bytes;
  info[1] = info[0] - info[2];
  return kSuccess;
}
REVATI_API int nvmlDeviceGetMemoryInfo_v2(void *device, void *out) {
  struct Info { unsigned version; unsigned long long total, reserved, free, used; };
  auto *info = static_cast<Info *>(out);
  unsigned long long plain[3];
  nvmlDeviceGetMemoryInfo(device, plain);
  info->total = plain[0]; info->reserved = 0; info->free = plain[1]; info->used = plain[2];
  return kSuccess;
}
REVATI_API int nvmlDeviceGetPciInfo_v3(void *device, PciInfo *pci) {
  std::memset(pci, 0, sizeof *pci);
  pci->domain = static_cast<unsigned>(gpu().attributes.at(50));
  pci->bus = static_cast<unsigned>(gpu().attributes.at(33) + index_of(device));
  pci->device = static_cast<unsigned>(gpu().attributes.at(34));
  std::snprintf(pci->legacy_id, sizeof pci->legacy_id, "%04X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
  std::snprintf(pci->id, sizeof pci->id, "%08X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
  return kSuccess;
}
REVATI_API int nvmlDeviceGetNvLinkState(void *, unsigned link, int *active) {
  if (static_cast<int>(link) >= gpu().nvlink_links) return kNotSupported;
  *active = 1;
  return kSuccess;
}
REVATI_API int nvmlDeviceGetP2PStatus(void *, void *, int, int *status) { *status = 0; return kSuccess; }
REVATI_API int nvmlDeviceGetTopologyCommonAncestor(void *, void *, int *level) { *level = 10; return kSuccess; }
REVATI_API int nvmlDeviceGetComputeMode(void *, int *mode) { *mode = 0; return kSuccess; }
REVATI_API int nvmlDeviceGetUtilizationRates(void *, unsigned *rates) { rates[0] = rates[1] = 0; return kSuccess; }
REVATI_API int nvmlDeviceGetMigMode(void *, unsigned *now, unsigned *pending) { *now = *pending = 0; return kSuccess; }
// No process shows: the emulated GPUs are this process tree's own.
REVATI_API int nvmlDeviceGetComputeRunningProcesses(void *, unsigned *count, void *) { *count = 0; return kSuccess; }
REVATI_API int nvmlDeviceGetComputeRunningProcesses_v3(void *, unsigned *count, void *) { *count = 0; return kSuccess; }
