// What a thread does that others see, and what it sees of them: each in its turn.
#include <algorithm>

#include "turns.h"

namespace revati::domain {
namespace {

// A loop may also wait for a moment, which only its own looking at a clock would tell.
constexpr ns_t kSpinQuantum = 50000, kLongSpinQuantum = 500000;
constexpr int kSpinShare = 64;  // of the time that it has spun already
// So many polls one after another are no loop yet: a turn of an event loop looks at all of its sockets.
constexpr int kFreePolls = 32;
// Nor are those of a charged phase, such as an allocator's for what has become free.
constexpr int kPhasePolls = 64;

void give_turn(Thread *thread, ns_t stirred) {
  Guard guard;
  lock();
  publish();
  stir(stirred);
  give_up_token();
  become_ready(thread->base);
  set_call(*thread->slot, "its turn", 0);
  pick();
  unlock();
  settle(thread->index);
  await_grant();
}

// Nobody is due before the calling thread's time, nor under way to be.
bool first() {
  const Domain &d = *segment;
  const ns_t current = local_now();
  return current <= d.next_key.load(std::memory_order_relaxed) + d.skew &&
         ((d.in_doubt.load(std::memory_order_relaxed) == 0 && !d.unhooked) || current <= d.checked + d.skew);
}

}  // namespace

void sync(Thread *thread) {
  if (!first()) give_turn(thread, kNever);
}

void charge(Thread *thread, ns_t ns) {
  const ns_t before = local_now();
  progress(thread);
  advance(ns);
  if (segment->spinners.load(std::memory_order_relaxed) || !first()) give_turn(thread, before);
}

void sent(Thread *) {
  Domain &d = *segment;
  const ns_t when = virtual_now();
  d.in_doubt = 2;
  ns_t last = d.last_send.load(std::memory_order_relaxed);
  while (last < when && !d.last_send.compare_exchange_weak(last, when)) {
  }
  d.counters.sends.fetch_add(1, std::memory_order_relaxed);
}

void observed(Thread *) {
  const ns_t ahead = segment->last_send.load(std::memory_order_relaxed) - local_now();
  if (ahead > 0) self.base += ahead;
}

void spin(Thread *thread, const char *call) {
  const int spins = ++thread->spins;
  const ns_t now = local_now();
  if (spins == 1) thread->spins_since = now;
  if (thread->phases && spins <= kPhasePolls) return;  // the phase's cost is theirs, too
  const bool free = spins <= kFreePolls;
  const ns_t ramp = free ? 0 : std::min(kSpinQuantum, ns_t{1000} << std::min(6, (spins - kFreePolls) / 8));
  const ns_t share = std::min(kLongSpinQuantum, (now - thread->spins_since) / kSpinShare);
  wait(thread, free ? Kind::kTimer : Kind::kSpin, now + std::max(ramp, share), call);
}

}  // namespace revati::domain
