// What engines and the CUDA stand-ins ask of the domain.
#include "api.h"

#include "protocol.h"
#include "queues.h"
#include "real.h"

namespace revati::domain {
namespace {

ns_t clock_now() {
  self.idle_waits = 0;
  return virtual_now();
}

void clock_wait_until(ns_t when) {
  Thread *thread = active();
  if (!thread || when <= local_now()) return;
  progress(thread);
  wait(thread, Kind::kTimer, when, "GPU completion");
}

void clock_spend(ns_t ns) {
  Thread *thread = active();
  if (!thread) return;
  progress(thread);
  advance(ns);
}

void clock_charge(ns_t ns) {
  if (Thread *thread = active()) charge(thread, ns);
}

void clock_exclude_cpu(bool exclude) {
  if (!segment) return;
  self.base = local_now();
  self.phases += exclude ? 1 : -1;
  if (segment->cpu_factor > 0) self.cpu_base = thread_cpu_ns();
}

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

// Null outside a domain.
REVATI_API const revati::DomainClock *revati_domain_clock() {
  static const revati::DomainClock clock{clock_now, clock_wait_until, clock_spend, clock_charge, clock_exclude_cpu};
  join();  // our constructor may still be to come
  return segment ? &clock : nullptr;
}

REVATI_API int64_t revati_now() { return segment ? clock_now() : 0; }
REVATI_API int64_t revati_real_now() { return real_now_ns(); }  // for measurements of the domain itself
REVATI_API void revati_charge(int64_t ns) { clock_charge(ns); }
REVATI_API void revati_sleep_until(int64_t ns) { clock_wait_until(ns); }

// Whether this process's CPU time moves its clocks (times the domain's factor), besides charges.
REVATI_API void revati_charge_cpu(int enable) {
  if (!segment) return;
  self.base = local_now();
  charge_cpu = enable;
  if (segment->cpu_factor > 0) self.cpu_base = thread_cpu_ns();
}

// ---- for what meets in shared memory ----

// Zeroed at first, the same for all members; null outside a domain.
REVATI_API void *revati_shared_area() { return segment ? segment->area : nullptr; }

// Blocks until `ready`, asked again after each wake of the queue.
REVATI_API void revati_queue_wait(uint64_t queue, int (*ready)(void *), void *context, const char *call) {
  while (!ready(context)) {
    Thread *thread = queue_thread();
    if (!thread) {
      pause_briefly();
      continue;
    }
    enqueue(thread, queue, call, context);
    if (ready(context)) {
      cancel(thread);
      break;
    }
    progress(thread);
    wait(thread, Kind::kQueue, kNever, call);
  }
}

REVATI_API void revati_queue_wake(uint64_t queue) {
  if (segment) wake(queue, kSlots);
}

// A poll that found nothing: a loop of them counts as waiting.
REVATI_API void revati_spin(const char *call) {
  if (Thread *thread = active()) spin(thread, call);
}
