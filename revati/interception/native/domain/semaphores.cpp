// Semaphores of our own, in the layout of glibc's, so that sem_open's files and sem_getvalue keep working.
#include <semaphore.h>

#include "clocks.h"
#include "queues.h"

namespace revati::domain {
namespace {

struct Semaphore {
  std::atomic<uint32_t> value, waiters;  // glibc (64 bit): one word of data, value below
  int32_t shared;                        // glibc: `private`, 0 or LLL_SHARED
  int32_t pad;
  std::atomic<uint64_t> id;              // unused by glibc
};
static_assert(sizeof(Semaphore) <= sizeof(sem_t));

Semaphore &own(sem_t *pointer) { return *reinterpret_cast<Semaphore *>(pointer); }

uint64_t queue_of(Semaphore &semaphore) {
  return semaphore.shared ? shared_queue(semaphore.id) : private_queue(&semaphore);
}

bool take(Semaphore &semaphore) {
  uint32_t value = semaphore.value.load();
  while (value > 0)
    if (semaphore.value.compare_exchange_weak(value, value - 1)) return true;
  return false;
}

int wait_on(sem_t *pointer, ns_t deadline, const char *call) {
  Semaphore &semaphore = own(pointer);
  if (take(semaphore)) return 0;
  Thread *thread = queue_thread();
  semaphore.waiters.fetch_add(1);
  int error = 0;
  while (!take(semaphore)) {
    if (!thread) {
      pause_briefly();
      if (deadline <= virtual_now()) { error = ETIMEDOUT; break; }
      continue;
    }
    enqueue(thread, queue_of(semaphore), call, pointer);
    if (take(semaphore)) {
      cancel(thread);
      break;
    }
    const Outcome outcome = wait(thread, Kind::kQueue, deadline, call, Handlers::kInterrupt);
    if (outcome != Outcome::kWoken) {
      error = take(semaphore) ? 0 : outcome == Outcome::kTimedOut ? ETIMEDOUT : EINTR;
      break;
    }
  }
  semaphore.waiters.fetch_sub(1);
  if (thread) progress(thread);
  return error ? fail(error) : 0;
}

bool invalid(const timespec *t) { return t->tv_nsec < 0 || t->tv_nsec > 999999999; }

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

REVATI_API int sem_wait(sem_t *pointer) {
  return segment ? wait_on(pointer, kNever, "sem_wait") : REAL(sem_wait)(pointer);
}

REVATI_API int sem_trywait(sem_t *pointer) noexcept {
  if (!segment) return REAL(sem_trywait)(pointer);
  if (take(own(pointer))) return 0;
  if (computes_on()) return fail(EAGAIN);
  if (Thread *thread = active()) spin(thread, "sem_trywait");
  return fail(EAGAIN);
}

REVATI_API int sem_timedwait(sem_t *pointer, const timespec *deadline) {
  if (!segment) return REAL(sem_timedwait)(pointer, deadline);
  if (invalid(deadline)) return fail(EINVAL);
  return wait_on(pointer, deadline_of(CLOCK_REALTIME, deadline), "sem_timedwait");
}

REVATI_API int sem_clockwait(sem_t *pointer, clockid_t clock, const timespec *deadline) {
  if (!segment) return REAL(sem_clockwait)(pointer, clock, deadline);
  if (invalid(deadline)) return fail(EINVAL);
  return wait_on(pointer, deadline_of(clock, deadline), "sem_clockwait");
}

REVATI_API int sem_init(sem_t *pointer, int shared, unsigned value) noexcept {
  const int result = REAL(sem_init)(pointer, shared, value);
  if (segment && result == 0) own(pointer).id = 0;
  return result;
}

REVATI_API int sem_post(sem_t *pointer) noexcept {
  if (!segment) return REAL(sem_post)(pointer);
  Semaphore &semaphore = own(pointer);
  if (semaphore.value.load() == 0x7fffffff) return fail(EOVERFLOW);
  semaphore.value.fetch_add(1);
  if (semaphore.waiters.load() > 0) wake(queue_of(semaphore), 1);
  return 0;
}
