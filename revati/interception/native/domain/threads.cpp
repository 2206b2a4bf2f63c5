// Threads: born with a slot, joined, and some of them left in real time.
#include <dlfcn.h>
#include <fnmatch.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cstring>

#include "polls.h"
#include "protocol.h"
#include "real.h"

namespace revati::domain {

bool matches(const char *patterns, const char *name) {
  char copy[sizeof segment->real_time_threads];
  std::memcpy(copy, patterns, sizeof copy);
  char *rest = nullptr;
  for (char *pattern = strtok_r(copy, ",", &rest); pattern; pattern = strtok_r(nullptr, ",", &rest))
    if (fnmatch(pattern, name, 0) == 0) return true;
  return false;
}

namespace {

struct Start {
  void *(*function)(void *);
  void *argument;
  int index;
};

pthread_key_t exit_key;
bool exit_key_made = false;

// Runs after the thread's own destructors: it asks for another round first.
void at_thread_exit(void *round) {
  const long left = reinterpret_cast<long>(round);
  if (left > 1) {
    pthread_setspecific(exit_key, reinterpret_cast<void *>(left - 1));
  } else {
    leave_thread(&self);
  }
}

__attribute__((constructor(102))) void make_exit_key() {
  exit_key_made = pthread_key_create(&exit_key, at_thread_exit) == 0;
}

void *run(void *pointer) {
  const Start start = *static_cast<Start *>(pointer);
  std::free(pointer);
  if (domain && start.index != kNobody) claim(&self, start.index);
  if (exit_key_made) pthread_setspecific(exit_key, reinterpret_cast<void *>(2L));
  return start.function(start.argument);
}

void set_real_time(bool enable) {
  if (!domain || !self.slot || self.gone || self.real_time == enable) return;
  if (!enable) {
    self.real_time = false;
    Guard guard;
    lock();
    self.slot->state = State::kBlocked;
    self.slot->kind = Kind::kUnhooked;
    segment->unhooked = 1;
    unlock();
    return;  // its next hook takes its turn
  }
  if (!active()) return;
  Guard guard;
  lock();
  self.base = local_now();
  self.slot->time = self.base;
  self.slot->state = State::kOutside;
  segment->key(self.index) = kNever;
  if (segment->token == self.index) segment->token = kNobody;
  self.real_time = true;
  pick();
  if (segment->duty == self.index) segment->duty = kNobody;  // the monitor's
  unlock();
}

// Long-lived helpers that measure real things stay in real time: see real_time_threads.
void named(pthread_t thread, const char *name) {
  if (!segment || !name) return;
  if (thread == pthread_self()) {
    if (self.slot) std::strncpy(self.slot->name, name, sizeof self.slot->name - 1);
    if (matches(segment->real_time_threads, name)) set_real_time(true);
  } else {
    for (int i = 0; i < segment->high; ++i)
      if (segment->slots[i].pid == process_id && segment->slots[i].handle == thread)
        std::strncpy(segment->slots[i].name, name, sizeof segment->slots[i].name - 1);
  }
}

int join_thread(pthread_t handle, void **value) {
  Thread *thread = active();
  if (!thread) return REAL(pthread_join)(handle, value);
  Guard guard;
  sync(thread);
  const int early = pthread_tryjoin_np(handle, value);
  if (early != EBUSY) {
    observed(thread);
    return early;
  }
  bool found = false;
  lock();
  for (int i = 0; i < segment->high; ++i) {
    const Slot &slot = segment->slots[i];
    if (slot.pid != process_id || slot.handle != handle || slot.state == State::kFree) continue;
    found = true;
    unstretch(i);  // an idle loop may have been told to end
  }
  unlock();
  if (!found) return REAL(pthread_join)(handle, value);  // about to be gone
  if (!block(thread, Kind::kKernel, kNever, "pthread_join", handle)) return EINTR;
  const int result = REAL(pthread_join)(handle, value);
  arrive(thread);
  progress(thread);
  return result;
}

int join_thread_until(pthread_t handle, void **value, ns_t deadline) {
  Thread *thread = active();
  for (;;) {
    const int result = pthread_tryjoin_np(handle, value);
    if (result != EBUSY) return result;
    if (virtual_now() >= deadline) return ETIMEDOUT;
    wait(thread, Kind::kTimer, std::min(deadline, virtual_now() + 1000000), "pthread_timedjoin_np");
  }
}

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

REVATI_API int pthread_create(pthread_t *handle, const pthread_attr_t *attributes, void *(*function)(void *),
                              void *argument) noexcept {
  Thread *parent = any_thread();
  if (!parent) return REAL(pthread_create)(handle, attributes, function, argument);
  if (Thread *thread = active()) sync(thread);
  Guard guard;
  lock();
  const int index = reserve(virtual_now(), process_id, 0);
  unlock();
  auto *start = static_cast<Start *>(std::malloc(sizeof(Start)));
  *start = {function, argument, index};
  const int error = REAL(pthread_create)(handle, attributes, run, start);
  if (error) {
    std::free(start);
    lock();
    if (index != kNobody) release(index);
    unlock();
  }
  return error;
}

REVATI_API int pthread_join(pthread_t handle, void **value) { return join_thread(handle, value); }

REVATI_API int pthread_timedjoin_np(pthread_t handle, void **value, const timespec *deadline) {
  if (!active()) return REAL(pthread_timedjoin_np)(handle, value, deadline);
  return join_thread_until(handle, value, to_ns(*deadline) - segment->epoch_real);
}

REVATI_API int pthread_clockjoin_np(pthread_t handle, void **value, clockid_t clock, const timespec *deadline) {
  if (!active()) return REAL(pthread_clockjoin_np)(handle, value, clock, deadline);
  const ns_t epoch = clock == CLOCK_REALTIME ? segment->epoch_real : segment->epoch_mono;
  return join_thread_until(handle, value, to_ns(*deadline) - epoch);
}

REVATI_API int pthread_setname_np(pthread_t thread, const char *name) noexcept {
  const int result = REAL(pthread_setname_np)(thread, name);
  named(thread, name);
  return result;
}

REVATI_API int prctl(int option, ...) noexcept {
  va_list list;
  va_start(list, option);
  const unsigned long a = va_arg(list, unsigned long), b = va_arg(list, unsigned long);
  const unsigned long c = va_arg(list, unsigned long), d = va_arg(list, unsigned long);
  va_end(list);
  const int result = static_cast<int>(checked(raw(SYS_prctl, option, as_long(a), as_long(b), as_long(c), as_long(d))));
  if (option == PR_SET_NAME && result == 0) named(pthread_self(), reinterpret_cast<const char *>(a));
  return result;
}

// Takes the calling thread out of virtual time, or back: its waits last real time and never hold the clock.
REVATI_API void revati_real_time_thread(int enable) { set_real_time(enable); }
