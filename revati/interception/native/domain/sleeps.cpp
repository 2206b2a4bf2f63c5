// Sleeps, and loops that yield instead of sleeping.
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "clocks.h"

namespace revati::domain {
namespace {

// How much of it is left, when a signal interrupts it.
ns_t sleep_until(Thread *thread, ns_t deadline, const char *call) {
  if (deadline <= local_now()) {
    spin(thread, call);
    return 0;
  }
  progress(thread);
  if (wait(thread, Kind::kTimer, deadline, call, Handlers::kInterrupt) != Outcome::kInterrupted) return 0;
  return std::max<ns_t>(1, deadline - virtual_now());
}

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

REVATI_API int nanosleep(const timespec *request, timespec *remaining) {
  Thread *thread = active();
  if (!thread) return REAL(nanosleep)(request, remaining);
  if (request->tv_sec < 0 || request->tv_nsec < 0 || request->tv_nsec > 999999999) return fail(EINVAL);
  const ns_t left = sleep_until(thread, after(to_ns(*request)), "nanosleep");
  if (left > 0 && remaining) *remaining = to_timespec(left);
  return left > 0 ? fail(EINTR) : 0;
}

REVATI_API int clock_nanosleep(clockid_t clock, int flags, const timespec *request, timespec *remaining) {
  Thread *thread = is_virtual(clock) ? any_thread() : nullptr;
  if (!thread) return REAL(clock_nanosleep)(clock, flags, request, remaining);
  if (request->tv_sec < 0 || request->tv_nsec < 0 || request->tv_nsec > 999999999) return EINVAL;
  const ns_t deadline = flags & TIMER_ABSTIME ? deadline_of(clock, request) : after(to_ns(*request));
  if (!active()) {  // a real-time thread sleeps for as long as virtual time would have to pass
    const timespec left = to_timespec(std::max<ns_t>(0, deadline - virtual_now()));
    return REAL(clock_nanosleep)(CLOCK_MONOTONIC, 0, &left, remaining);
  }
  const ns_t left = sleep_until(thread, deadline, "clock_nanosleep");
  if (left > 0 && remaining && !(flags & TIMER_ABSTIME)) *remaining = to_timespec(left);
  return left > 0 ? EINTR : 0;
}

REVATI_API int usleep(useconds_t us) {
  Thread *thread = active();
  if (!thread) return REAL(usleep)(us);
  return sleep_until(thread, after(us * 1000LL), "usleep") > 0 ? fail(EINTR) : 0;
}

REVATI_API unsigned sleep(unsigned seconds) {
  Thread *thread = active();
  if (!thread) return REAL(sleep)(seconds);
  const ns_t left = sleep_until(thread, after(seconds * 1000000000LL), "sleep");
  return static_cast<unsigned>((left + 999999999) / 1000000000);
}

REVATI_API int sched_yield() noexcept {
  Thread *thread = active();
  if (!thread) return REAL(sched_yield)();
  spin(thread, "sched_yield");
  return 0;
}

