// The virtual clock of the process, and the clocks that its code reads.
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "../domain/api.h"
#include "core.h"

// Of librevati_domain.so, which only the members of a domain of processes load.
extern "C" __attribute__((weak)) const revati::DomainClock *revati_domain_clock();

namespace revati {
namespace {

ns_t clock_ns = 0;
const DomainClock *const domain = revati_domain_clock ? revati_domain_clock() : nullptr;
// Per thread: helper threads that wait with the kernel's timeouts must not see a clock that stands still.
thread_local bool clocks_are_virtual = false;
ns_t epoch_ns[2] = {0, 0};  // real time at virtual zero: CLOCK_REALTIME, all others

// A host phase: the engine code between two points, whose cost a host table knows.  Its CUDA calls see time
// pass evenly: the k-th of n calls happens k / n into the phase.  n is learned from the last phase alike.
struct Phase {
  bool active = false;
  int tag = 0;
  ns_t cost = 0, used = 0, step = 0;
  int calls = 0;
};
// Per thread: in a domain each has a clock of its own.
thread_local Phase phase;
thread_local std::unordered_map<int, int> calls_by_tag;
constexpr ns_t kUnseenCall = 25000;  // a call's share of host time is 20 to 40 µs in the engines' steps

ns_t real_clock(clockid_t id) {
  timespec value;
  syscall(SYS_clock_gettime, id, &value);
  return value.tv_sec * 1000000000LL + value.tv_nsec;
}

bool is_virtual(clockid_t id) {
  return clocks_are_virtual && id != CLOCK_PROCESS_CPUTIME_ID && id != CLOCK_THREAD_CPUTIME_ID;
}

ns_t read_clock(clockid_t id) {
  if (!is_virtual(id)) return real_clock(id);
  const bool wall = id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE;
  return epoch_ns[wall ? 0 : 1] + clock_ns;
}

}  // namespace

ns_t now() { return domain ? domain->now() : clock_ns; }

void wait_until(ns_t when) {
  if (domain) return domain->wait_until(when);
  clock_ns = std::max(clock_ns, when);
}

static void advance(ns_t ns) {
  if (domain) return domain->charge(ns);
  clock_ns += ns;
}

// Others take their turn at the phase's end: a launch has no effect that they could see.
void host_call() {
  if (!phase.active) return;
  ++phase.calls;
  const ns_t part = std::min(phase.step, phase.cost - phase.used);
  phase.used += part;
  if (domain) return domain->spend(part);
  clock_ns += part;
}

}  // namespace revati

using namespace revati;

REVATI_API int64_t revati_clock_now() { return now(); }
REVATI_API void revati_clock_set(int64_t ns) { clock_ns = ns; }  // a domain's clock cannot be set
REVATI_API void revati_clock_wait_until(int64_t ns) { wait_until(ns); }
REVATI_API void revati_clock_advance(int64_t ns) { advance(ns); }

REVATI_API void revati_phase_begin(int tag, int64_t cost_ns) {
  const auto seen = calls_by_tag.find(tag);
  const ns_t step = seen == calls_by_tag.end() ? kUnseenCall : cost_ns / (seen->second + 1);
  if (domain && !phase.active) domain->exclude_cpu(true);
  phase = {true, tag, cost_ns, 0, step, 0};
}

// `actual_cost_ns` < 0: the cost announced at the beginning; else what the phase turned out to cost.
REVATI_API void revati_phase_end(int64_t actual_cost_ns) {
  const ns_t cost = actual_cost_ns < 0 ? phase.cost : actual_cost_ns;
  advance(std::max<ns_t>(0, cost - phase.used));
  calls_by_tag[phase.tag] = phase.calls;
  phase.active = false;
  if (domain) domain->exclude_cpu(false);
}

// From here on this thread's clocks show virtual time, continuing from the present.
REVATI_API void revati_clocks_virtual(int enable) {
  if (domain) return;  // they all do
  epoch_ns[0] = real_clock(CLOCK_REALTIME) - clock_ns;
  epoch_ns[1] = real_clock(CLOCK_MONOTONIC) - clock_ns;
  clocks_are_virtual = enable;
}

REVATI_API int clock_gettime(clockid_t id, timespec *value) noexcept {
  if (!is_virtual(id)) return static_cast<int>(syscall(SYS_clock_gettime, id, value));
  const ns_t t = read_clock(id);
  value->tv_sec = t / 1000000000LL;
  value->tv_nsec = t % 1000000000LL;
  return 0;
}

REVATI_API int gettimeofday(timeval *value, void *) noexcept {
  const ns_t t = read_clock(CLOCK_REALTIME);
  value->tv_sec = t / 1000000000LL;
  value->tv_usec = t % 1000000000LL / 1000;
  return 0;
}

REVATI_API time_t time(time_t *out) noexcept {
  const time_t t = read_clock(CLOCK_REALTIME) / 1000000000LL;
  if (out) *out = t;
  return t;
}
