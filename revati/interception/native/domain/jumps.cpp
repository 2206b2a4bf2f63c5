// Keys: who is next, and when time moves.  docs/virtual_time.md explains the protocol.
#include <algorithm>

#include "inbox.h"
#include "real.h"
#include "turns.h"

namespace revati::domain {
namespace {

constexpr ns_t kLongJump = 1000000, kTracedJump = 1000000000;
constexpr ns_t kTracedPeriod = 600 * kTracedJump;  // in which nobody may have done more than wake again and again
// Until what is in flight has arrived, or is asleep: a few µs on a free core; else our core may be what it needs.
constexpr int kSpinRounds = 2, kYieldRounds = 6;

void wake_spinners() {
  Domain &d = *segment;
  if (d.stirred >= kNever) return;
  bool any = false;
  for (int i = 0; i < d.high; ++i) {
    Slot &slot = d.slots[i];
    if (slot.state != State::kBlocked || slot.kind != Kind::kSpin) continue;
    any = true;
    const ns_t when = std::max(slot.time, d.stirred);
    if (when < d.key(i)) set_key(i, when);
  }
  d.stirred = kNever;
  d.spinners = any;
}

// Who waits where no hook sees it does so in real time: until it is clear that it waits for long, virtual time
// passes no faster.  Else timers that follow one another would reach any time-out meanwhile.
bool outpaces_unhooked(ns_t key) {
  const Domain &d = *segment;
  const int64_t now = real_now_ns();
  for (int i = 0; i < d.high; ++i) {
    const Slot &slot = d.slots[i];
    if (slot.state != State::kBlocked || slot.kind != Kind::kUnhooked) continue;
    const int64_t waited = now - slot.since_real_ns;
    if (waited < kUnhookedPatience && key - slot.time > waited) return true;
  }
  return false;
}

}  // namespace

void trace(ns_t to) {
  const ns_t from = segment->now;
  if (to > from + kTracedJump || to / kTracedPeriod > from / kTracedPeriod) trace_jump(from, to);
}

void stir(ns_t when) {
  if (segment->spinners.load(std::memory_order_relaxed)) segment->stirred = std::min(segment->stirred, when);
}

void set_key(int index, ns_t key) {
  Domain &d = *segment;
  d.key(index) = key;
  d.order(index) = ++d.sequence;
  if (index != d.token && key < d.next_key) d.next_key = key;
}

ns_t Domain::earliest() const {  // of free slots, too: they have none
  ns_t earliest = kNever;
  for (int block = 0; block * kBlock < high; ++block)
    for (const ns_t key : keys[block].key) earliest = std::min(earliest, key);
  return earliest;
}

int search() {
  const Domain &d = *segment;
  const int high = d.high;
  const ns_t earliest = d.earliest();
  if (earliest >= kNever) return kNobody;
  int found = kNobody;
  for (int i = 0; i < high; ++i)
    if (d.key(i) == earliest && (found == kNobody || d.order(i) < d.order(found))) found = i;
  return found;
}

void grant(int index) {
  Domain &d = *segment;
  Slot &slot = d.slots[index];
  slot.time = std::max(slot.time, d.key(index));
  slot.interrupt = slot.state == State::kBlocked && slot.kind == Kind::kSignalled && index != self.index;
  if (slot.time > d.now) d.now = slot.time;
  d.waits_for(index) = 0;
  d.key(index) = kNever;
  d.next_key = d.earliest();
  d.token = index;
  ++slot.grants;
  slot.since_real_ns = real_now_ns();
  slot.state = State::kRunning;
  slot.word.store(1, std::memory_order_release);
  d.counters.grants.fetch_add(1, std::memory_order_relaxed);
  if (index == self.index) d.counters.self_grants.fetch_add(1, std::memory_order_relaxed);
  else self.to_wake = index;  // by unlock()
}

void wake_holder(int index) {
  Slot &slot = segment->slots[index];
  if (slot.interrupt.exchange(0)) raw(SYS_tgkill, slot.pid, slot.tid, kWakeSignal);
  else futex_wake(slot.word);
}

void pick() {
  Domain &d = *segment;
  if (d.token != kNobody) return;
  d.duty = kNobody;
  if (!d.break_scan || search() == kNobody) collect();
  wake_spinners();
  const int index = search();
  if (index == kNobody) return;
  const ns_t key = d.key(index);
  if (key > d.checked + d.skew) {
    const int tolerated = key > d.now + kLongJump ? 0 : 1;
    if (d.unhooked) d.in_doubt = 2;  // it may have gone on unseen
    if (d.in_doubt > 0 && !d.break_scan) {
      if (in_flight()) {
        d.duty = self.index;
        d.counters.retries.fetch_add(1, std::memory_order_relaxed);
        return;
      }
      d.in_doubt = d.in_doubt - 1;
      if (d.unhooked && !tolerated) {
        for (int i = 0; i < 400; ++i) __builtin_ia32_pause();
        if (in_flight()) {
          d.duty = self.index;
          return;
        }
        d.in_doubt = 0;
      }
      if (d.unhooked && !tolerated && outpaces_unhooked(key)) {
        d.duty = self.index;
        return;
      }
      for (int i = 0; d.in_doubt == 0 && i < d.high; ++i) d.slots[i].signalled.store(0, std::memory_order_relaxed);
      if (d.in_doubt > tolerated) {
        d.duty = self.index;
        return;
      }
    }
    trace(key);
    d.checked = key;
    d.counters.jumps.fetch_add(1, std::memory_order_relaxed);
  }
  grant(index);
}

void settle(int me) {
  Domain &d = *segment;
  if (me == kNobody || d.duty != me) return;
  const int64_t begin = real_now_ns();
  for (int round = 0; d.duty == me && d.token == kNobody && !d.ended; ++round) {
    if (round < kSpinRounds) {
      for (int i = 0; i < 400; ++i) __builtin_ia32_pause();  // some 20 µs: the kernel may still be delivering
    } else if (round < kYieldRounds) {
      raw(SYS_sched_yield);
    } else {
      const timespec pause{0, std::min(500000, 20000 * (1 + round / 64))};
      raw(SYS_nanosleep, as_long(&pause), 0);
    }
    lock();
    if (d.duty == me && d.token == kNobody) pick();
    unlock();
  }
  d.counters.settle_ns += real_now_ns() - begin;
}

}  // namespace revati::domain
