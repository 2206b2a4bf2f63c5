// Clocks: every one that counts seconds of the world shows virtual time; CPU-time clocks stay real.
#include "clocks.h"

#include <sys/time.h>
#include <sys/times.h>
#include <time.h>
#include <unistd.h>

namespace revati::domain {
namespace {

// A loop that only reads clocks waits for time to pass.
constexpr int kPatientReads = 1000;
constexpr ns_t kReadQuantum = 20000;

ns_t read_time() {
  Thread &thread = self;
  thread.idle_waits = 0;
  if (computes_on()) return virtual_now();
  // Who lost the token in an unhooked wait takes its turn before it sees a time.
  if (thread.slot && thread.slot->state.load(std::memory_order_relaxed) != State::kRunning) active();
  if (thread.slot && !thread.depth && !thread.real_time && domain && ++thread.clock_reads > kPatientReads) {
    if (Thread *running = active()) {
      const ns_t quantum = std::min<ns_t>(kReadQuantum, thread.clock_reads - kPatientReads);
      wait(running, Kind::kTimer, local_now() + quantum, "reading clocks");
    }
  }
  return virtual_now();
}

}  // namespace

bool is_virtual(clockid_t clock) {
  switch (clock) {
    case CLOCK_REALTIME: case CLOCK_REALTIME_COARSE: case CLOCK_REALTIME_ALARM: case CLOCK_TAI:
    case CLOCK_MONOTONIC: case CLOCK_MONOTONIC_RAW: case CLOCK_MONOTONIC_COARSE:
    case CLOCK_BOOTTIME: case CLOCK_BOOTTIME_ALARM: return true;
    default: return false;
  }
}

ns_t epoch(clockid_t clock) {
  switch (clock) {
    case CLOCK_REALTIME: case CLOCK_REALTIME_COARSE: case CLOCK_REALTIME_ALARM: case CLOCK_TAI: return segment->epoch_real;
    case CLOCK_BOOTTIME: case CLOCK_BOOTTIME_ALARM: return segment->epoch_boot;
    default: return segment->epoch_mono;
  }
}

ns_t deadline_of(clockid_t clock, const timespec *absolute) {
  constexpr time_t kRepresentable = INT64_MAX / 1000000000LL;
  if (!absolute || absolute->tv_sec >= kRepresentable) return kNever;
  return std::min(kNever, to_ns(*absolute) - epoch(clock));
}

}  // namespace revati::domain

using namespace revati::domain;

REVATI_API int clock_gettime(clockid_t clock, timespec *value) noexcept {
  if (!domain || !is_virtual(clock)) return REAL(clock_gettime)(clock, value);
  *value = to_timespec(epoch(clock) + read_time());
  return 0;
}

REVATI_API int gettimeofday(timeval *value, void *zone) noexcept {
  if (!domain) return REAL(gettimeofday)(value, zone);
  const ns_t t = segment->epoch_real + read_time();
  *value = {t / 1000000000LL, t % 1000000000LL / 1000};
  return 0;
}

REVATI_API time_t time(time_t *out) noexcept {
  if (!domain) return REAL(time)(out);
  const time_t t = (segment->epoch_real + read_time()) / 1000000000LL;
  if (out) *out = t;
  return t;
}

REVATI_API int timespec_get(timespec *value, int base) noexcept {
  if (!domain || base != TIME_UTC) return REAL(timespec_get)(value, base);
  *value = to_timespec(segment->epoch_real + read_time());
  return base;
}

REVATI_API clock_t times(tms *buffer) noexcept {
  const clock_t real = REAL(times)(buffer);
  if (!domain) return real;
  return (segment->epoch_boot + read_time()) / (1000000000LL / sysconf(_SC_CLK_TCK));
}
