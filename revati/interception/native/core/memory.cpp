// Device memory is address space: mapped without reserve, so only pages that metadata touches cost RAM.
#include <sys/mman.h>

#include <cstring>

#include "stream.h"

namespace revati {
namespace {

constexpr size_t kGranularity = 2 << 20;  // cudaMalloc hands out pages of 2 MiB

std::map<uintptr_t, Allocation> allocations;
std::map<int, int64_t> used_bytes;

size_t round_up(size_t bytes) { return (bytes + kGranularity - 1) / kGranularity * kGranularity; }

void *map_aligned(size_t bytes) {
  const size_t padded = bytes + kGranularity;
  void *raw = mmap(nullptr, padded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const uintptr_t start = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t base = (start + kGranularity - 1) / kGranularity * kGranularity;
  if (base > start) munmap(raw, base - start);
  munmap(reinterpret_cast<void *>(base + bytes), start + padded - base - bytes);
  return reinterpret_cast<void *>(base);
}

}  // namespace

void *device_alloc(size_t bytes, int device, bool counted) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const size_t size = round_up(bytes ? bytes : 1);
  if (counted) {
    size_t free_bytes, total_bytes;
    memory_info(device, &free_bytes, &total_bytes);
    if (size > free_bytes) return nullptr;
  }
  void *pointer = map_aligned(size);
  if (!pointer) return nullptr;
  const uintptr_t base = reinterpret_cast<uintptr_t>(pointer);
  allocations[base] = {base, size, Space::kDevice, device, true, counted};
  if (counted) used_bytes[device] += static_cast<int64_t>(size);
  return pointer;
}

void *host_alloc(size_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const size_t size = (bytes + 4095) / 4096 * 4096 + (bytes == 0 ? 4096 : 0);
  void *pointer = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pointer == MAP_FAILED) return nullptr;
  const uintptr_t base = reinterpret_cast<uintptr_t>(pointer);
  allocations[base] = {base, size, Space::kHost, current_device(), true, false};
  return pointer;
}

void host_register(void *pointer, size_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const uintptr_t base = reinterpret_cast<uintptr_t>(pointer);
  allocations[base] = {base, bytes, Space::kHost, current_device(), false, false};
}

bool release(void *pointer) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  if (!pointer) return true;
  const auto found = allocations.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == allocations.end()) return false;
  const Allocation allocation = found->second;
  allocations.erase(found);
  if (allocation.counted) used_bytes[allocation.device] -= static_cast<int64_t>(allocation.bytes);
  if (allocation.owned) munmap(pointer, allocation.bytes);
  return true;
}

const Allocation *find_allocation(const void *pointer) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) return nullptr;
  const Allocation &candidate = std::prev(after)->second;
  return address < candidate.base + candidate.bytes ? &candidate : nullptr;
}

void memory_info(int device, size_t *free_bytes, size_t *total_bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const int64_t taken = used_bytes[device] + static_cast<int64_t>(gpu().context_bytes);
  const int64_t total = static_cast<int64_t>(gpu().memory_bytes);
  *free_bytes = static_cast<size_t>(total > taken ? total - taken : 0);
  *total_bytes = gpu().memory_bytes;
}

void charge_memory(int device, int64_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  used_bytes[device] += bytes;
}

const char *copy(void *dst, const void *src, size_t bytes) {
  const Allocation *to = find_allocation(dst), *from = find_allocation(src);
  const bool to_device = to && to->space == Space::kDevice, from_device = from && from->space == Space::kDevice;
  if (bytes <= kMetadataBytes || (!to_device && !from_device)) std::memmove(dst, src, bytes);
  if (to_device) return from_device ? "d2d" : "h2d";
  return from_device ? "d2h" : "h2h";
}

void copy_async(void *dst, const void *src, size_t bytes, void *stream) {
  // The host may reuse its buffer only after the copy, so copying at submission is indistinguishable.
  const char *direction = copy(dst, src, bytes);
  launch_copy(stream, direction, static_cast<int64_t>(bytes));
  const Allocation *host = find_allocation(direction[0] == 'h' ? src : dst);
  const bool pageable = (direction[0] == 'h' || direction[2] == 'h') && !host;
  // A copy to pageable memory returns only when it is done.
  if (pageable && direction[2] == 'h') synchronize(stream_of(stream));
}

void fill(void *dst, int value, size_t bytes) {
  if (bytes <= kMetadataBytes) std::memset(dst, value, bytes);
}

}  // namespace revati
