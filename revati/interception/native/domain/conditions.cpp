// Condition variables of our own: who signals one knows, without the kernel, whom it wakes.
#include <pthread.h>

#include <cstring>
#include <new>

#include "clocks.h"
#include "queues.h"

namespace revati::domain {
namespace {

// Lies in the memory of a pthread_cond_t; PTHREAD_COND_INITIALIZER is all zeros.
struct Condition {
  std::atomic<uint64_t> id;
  std::atomic<uint32_t> waiters;
  uint32_t shared;
  clockid_t clock;  // CLOCK_REALTIME is 0
};
static_assert(sizeof(Condition) <= sizeof(pthread_cond_t));

Condition &own(pthread_cond_t *condition) { return *reinterpret_cast<Condition *>(condition); }

uint64_t queue_of(Condition &condition) {
  return condition.shared ? shared_queue(condition.id) : private_queue(&condition);
}

int wait_on(pthread_cond_t *pointer, pthread_mutex_t *mutex, ns_t deadline, const char *call) {
  Condition &condition = own(pointer);
  Thread *thread = queue_thread();
  if (!thread) {  // after the thread's exit from the domain: a spurious wake-up
    pthread_mutex_unlock(mutex);
    pause_briefly();
    pthread_mutex_lock(mutex);
    return 0;
  }
  condition.waiters.fetch_add(1);
  enqueue(thread, queue_of(condition), call, pointer);
  pthread_mutex_unlock(mutex);
  const Outcome outcome = wait(thread, Kind::kQueue, deadline, call);
  condition.waiters.fetch_sub(1);
  progress(thread);
  pthread_mutex_lock(mutex);
  return outcome == Outcome::kWoken ? 0 : ETIMEDOUT;
}

int notify(pthread_cond_t *pointer, int count) {
  Condition &condition = own(pointer);
  if (condition.waiters.load() == 0) return 0;
  wake(queue_of(condition), count);
  return 0;
}

bool invalid(const timespec *t) { return t->tv_nsec < 0 || t->tv_nsec > 999999999; }

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

REVATI_API int pthread_cond_init(pthread_cond_t *pointer, const pthread_condattr_t *attributes) noexcept {
  if (!segment) return REAL(pthread_cond_init)(pointer, attributes);
  std::memset(pointer, 0, sizeof *pointer);
  Condition &condition = *new (pointer) Condition{};
  if (attributes) {
    int shared = 0;
    pthread_condattr_getpshared(attributes, &shared);
    condition.shared = shared == PTHREAD_PROCESS_SHARED;
    pthread_condattr_getclock(attributes, &condition.clock);
  }
  return 0;
}

REVATI_API int pthread_cond_destroy(pthread_cond_t *pointer) noexcept {
  return segment ? 0 : REAL(pthread_cond_destroy)(pointer);
}

REVATI_API int pthread_cond_wait(pthread_cond_t *pointer, pthread_mutex_t *mutex) {
  if (!segment) return REAL(pthread_cond_wait)(pointer, mutex);
  return wait_on(pointer, mutex, kNever, "pthread_cond_wait");
}

REVATI_API int pthread_cond_timedwait(pthread_cond_t *pointer, pthread_mutex_t *mutex, const timespec *deadline) {
  if (!segment) return REAL(pthread_cond_timedwait)(pointer, mutex, deadline);
  if (invalid(deadline)) return EINVAL;
  return wait_on(pointer, mutex, deadline_of(own(pointer).clock, deadline), "pthread_cond_timedwait");
}

REVATI_API int pthread_cond_clockwait(pthread_cond_t *pointer, pthread_mutex_t *mutex, clockid_t clock,
                                      const timespec *deadline) {
  if (!segment) return REAL(pthread_cond_clockwait)(pointer, mutex, clock, deadline);
  if (invalid(deadline)) return EINVAL;
  return wait_on(pointer, mutex, deadline_of(clock, deadline), "pthread_cond_clockwait");
}

REVATI_API int pthread_cond_signal(pthread_cond_t *pointer) noexcept {
  return segment ? notify(pointer, 1) : REAL(pthread_cond_signal)(pointer);
}

REVATI_API int pthread_cond_broadcast(pthread_cond_t *pointer) noexcept {
  return segment ? notify(pointer, kSlots) : REAL(pthread_cond_broadcast)(pointer);
}
