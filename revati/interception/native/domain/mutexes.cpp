// Mutexes stay glibc's; only who finds one locked waits in virtual time.
#include <pthread.h>

#include "clocks.h"
#include "queues.h"

namespace revati::domain {
namespace {

std::atomic<int> waiting{0};  // threads of this process that wait for a mutex

bool between_processes(const pthread_mutex_t *mutex) { return mutex->__data.__kind & 128; }

// By a thread of this process whose work takes real time: waiting for it must not let virtual time pass.
bool held_in_real_time(const pthread_mutex_t *mutex) {
  const int owner = mutex->__data.__owner;
  for (int i = 0; owner && i < segment->high; ++i) {
    const Slot &slot = segment->slots[i];
    if (slot.tid == owner && slot.pid == process_id) return slot.state == State::kOutside;
  }
  return false;
}

int lock_in_real_time(pthread_mutex_t *mutex) {
  self.slot->keeps_token = 1;
  const int result = REAL(pthread_mutex_lock)(mutex);
  self.slot->keeps_token = 0;
  return result;
}

int lock_until(pthread_mutex_t *mutex, ns_t deadline, const char *call) {
  const int first = REAL(pthread_mutex_trylock)(mutex);
  if (first != EBUSY) return first;
  Thread *thread = active();
  if (thread && deadline >= kNever && held_in_real_time(mutex)) return lock_in_real_time(mutex);
  if (!thread || mutex->__data.__owner == self.slot->tid || held_in_real_time(mutex)) {
    if (deadline >= kNever) return REAL(pthread_mutex_lock)(mutex);
    const timespec left = to_timespec(real_clock(CLOCK_REALTIME) + std::max<ns_t>(0, deadline - virtual_now()));
    return REAL(pthread_mutex_timedlock)(mutex, &left);
  }
  if (between_processes(mutex) && deadline >= kNever) {
    Guard guard;
    sync(thread);
    if (!block(thread, Kind::kKernel, kNever, call, reinterpret_cast<uint64_t>(mutex))) return EDEADLK;
    const int result = REAL(pthread_mutex_lock)(mutex);
    arrive(thread);
    return result;
  }
  int result;
  waiting.fetch_add(1);
  for (;;) {
    enqueue(thread, private_queue(mutex), call, mutex);
    result = REAL(pthread_mutex_trylock)(mutex);
    if (result == EBUSY && deadline >= kNever && held_in_real_time(mutex)) result = lock_in_real_time(mutex);
    if (result != EBUSY) {
      cancel(thread);
      break;
    }
    if (wait(thread, Kind::kQueue, deadline, call) == Outcome::kTimedOut) {
      result = REAL(pthread_mutex_trylock)(mutex);
      if (result == EBUSY) result = ETIMEDOUT;
      break;
    }
    if (!domain) {
      result = REAL(pthread_mutex_lock)(mutex);
      break;
    }
  }
  waiting.fetch_sub(1);
  progress(thread);
  return result;
}

// Reader-writer locks: the kernel wakes their waiters, so waits for them are scanned.
template <typename Try, typename Lock>
int lock_shared(Try try_lock, Lock lock_it, const char *call) {
  Thread *thread = active();
  const int first = thread ? try_lock() : EBUSY;
  if (first != EBUSY) return first;
  if (!thread) return lock_it();
  Guard guard;
  sync(thread);
  segment->in_doubt = 2;  // unlocking one is no hook
  if (!block(thread, Kind::kKernel, kNever, call, 0)) return EDEADLK;
  const int result = lock_it();
  arrive(thread);
  return result;
}

template <typename Try>
int lock_shared_until(Try try_lock, ns_t deadline, const char *call) {
  for (;;) {
    const int result = try_lock();
    if (result != EBUSY) return result;
    if (virtual_now() >= deadline) return ETIMEDOUT;
    if (Thread *thread = active())
      wait(thread, Kind::kTimer, std::min(deadline, virtual_now() + 1000000), call);
    else
      pause_briefly();
  }
}

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

REVATI_API int pthread_mutex_lock(pthread_mutex_t *mutex) noexcept {
  if (!domain) return REAL(pthread_mutex_lock)(mutex);
  return lock_until(mutex, kNever, "pthread_mutex_lock");
}

REVATI_API int pthread_mutex_timedlock(pthread_mutex_t *mutex, const timespec *deadline) noexcept {
  if (!domain) return REAL(pthread_mutex_timedlock)(mutex, deadline);
  return lock_until(mutex, deadline_of(CLOCK_REALTIME, deadline), "pthread_mutex_timedlock");
}

REVATI_API int pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const timespec *deadline) noexcept {
  if (!domain) return REAL(pthread_mutex_clocklock)(mutex, clock, deadline);
  return lock_until(mutex, deadline_of(clock, deadline), "pthread_mutex_clocklock");
}

REVATI_API int pthread_mutex_unlock(pthread_mutex_t *mutex) noexcept {
  if (domain && between_processes(mutex)) segment->in_doubt = 2;  // the kernel wakes those who wait
  const int result = REAL(pthread_mutex_unlock)(mutex);
  if (waiting.load(std::memory_order_relaxed) > 0 && segment) wake(private_queue(mutex), 1);
  return result;
}

REVATI_API int pthread_rwlock_rdlock(pthread_rwlock_t *lock) noexcept {
  return lock_shared([&] { return pthread_rwlock_tryrdlock(lock); }, [&] { return REAL(pthread_rwlock_rdlock)(lock); },
                     "pthread_rwlock_rdlock");
}
REVATI_API int pthread_rwlock_wrlock(pthread_rwlock_t *lock) noexcept {
  return lock_shared([&] { return pthread_rwlock_trywrlock(lock); }, [&] { return REAL(pthread_rwlock_wrlock)(lock); },
                     "pthread_rwlock_wrlock");
}
REVATI_API int pthread_rwlock_unlock(pthread_rwlock_t *lock) noexcept {
  if (domain) segment->in_doubt = 2;
  return REAL(pthread_rwlock_unlock)(lock);
}
REVATI_API int pthread_rwlock_timedrdlock(pthread_rwlock_t *lock, const timespec *deadline) noexcept {
  if (!domain) return REAL(pthread_rwlock_timedrdlock)(lock, deadline);
  return lock_shared_until([&] { return pthread_rwlock_tryrdlock(lock); }, deadline_of(CLOCK_REALTIME, deadline),
                           "pthread_rwlock_timedrdlock");
}
REVATI_API int pthread_rwlock_timedwrlock(pthread_rwlock_t *lock, const timespec *deadline) noexcept {
  if (!domain) return REAL(pthread_rwlock_timedwrlock)(lock, deadline);
  return lock_shared_until([&] { return pthread_rwlock_trywrlock(lock); }, deadline_of(CLOCK_REALTIME, deadline),
                           "pthread_rwlock_timedwrlock");
}

REVATI_API int pthread_barrier_wait(pthread_barrier_t *barrier) noexcept {
  Thread *thread = active();
  if (!thread) return REAL(pthread_barrier_wait)(barrier);
  Guard guard;
  sync(thread);
  sent(thread);
  if (!block(thread, Kind::kKernel, kNever, "pthread_barrier_wait", reinterpret_cast<uint64_t>(barrier))) return 0;
  const int result = REAL(pthread_barrier_wait)(barrier);
  segment->in_doubt = 2;
  arrive(thread);
  return result;
}
