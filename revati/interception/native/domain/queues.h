// Names of the queues on which hooked waits wait.
#pragma once
#include "protocol.h"
#include "real.h"

namespace revati::domain {

inline uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
  return value ^ (value >> 31);
}

// An object of this process, by its address.
inline uint64_t private_queue(const void *object) {
  return mix(reinterpret_cast<uint64_t>(object) ^ static_cast<uint64_t>(process_id) << 47) | 1;
}

// An object in shared memory, by a number that it keeps.
inline uint64_t shared_queue(std::atomic<uint64_t> &id) {
  uint64_t known = id.load();
  if (!known) {
    const uint64_t fresh = segment->next_id.fetch_add(1) + 1;
    known = id.compare_exchange_strong(known, fresh) ? fresh : id.load();
  }
  return mix(known) << 1;
}

// Whoever may wait on a queue: any thread of the domain, whatever its time.
inline Thread *queue_thread() {
  if (Thread *thread = active()) return thread;
  if (self.slot && !self.gone) return &self;
  return nullptr;
}

inline void pause_briefly() {
  const timespec pause{0, 1000000};
  raw(SYS_nanosleep, as_long(&pause), 0);
}

}  // namespace revati::domain
