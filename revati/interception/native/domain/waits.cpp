// Waits: those that the domain ends, and those that the kernel ends.
#include <algorithm>
#include <cstring>

#include "real.h"
#include "turns.h"

namespace revati::domain {
namespace {

Outcome wait_in_real_time(ns_t deadline) {
  Slot &slot = *self.slot;
  const int64_t end = deadline >= kNever ? INT64_MAX : real_now_ns() + std::max<ns_t>(0, deadline - virtual_now());
  while (!slot.word.load(std::memory_order_acquire)) {
    const int64_t left = end - real_now_ns();
    if (left <= 0) {
      cancel(&self);
      return slot.word.load() ? Outcome::kWoken : Outcome::kTimedOut;
    }
    futex_wait(slot.word, 0, std::min(left, kRealSecond));
  }
  return Outcome::kWoken;
}

// The thread's slot waits from here on, without the token.  Lock held before, not after.
void sleep_until(Thread *thread, Kind kind, ns_t deadline) {
  Slot &slot = *thread->slot;
  slot.woken = 0;
  slot.word.store(0);
  slot.running.store(0);
  slot.kind = kind;
  slot.deadline = deadline;
  slot.state = State::kBlocked;
  give_up_token();
  set_key(thread->index, std::max(deadline, slot.time));
  pick();
  unlock();
  settle(thread->index);
}

}  // namespace

void set_call(Slot &slot, const char *call, uint64_t object) {
  std::strncpy(slot.call, call, sizeof slot.call - 1);
  slot.object = object;
}

void enqueue(Thread *thread, uint64_t queue, const char *call, const void *object) {
  Guard guard;
  lock();
  Slot &slot = *thread->slot;
  slot.woken = 0;
  slot.word.store(0);
  set_call(slot, call, as_long(object));
  segment->waits_for(thread->index) = queue;
  segment->order(thread->index) = ++segment->sequence;
  unlock();
}

void cancel(Thread *thread) {
  Guard guard;
  lock();
  segment->waits_for(thread->index) = 0;
  unlock();
}

Outcome wait(Thread *thread, Kind kind, ns_t deadline, const char *call, Handlers handlers) {
  Domain &d = *segment;
  Slot &slot = *thread->slot;
  Guard guard;
  if (thread->real_time || !domain) return wait_in_real_time(deadline);
  if (kind == Kind::kTimer || kind == Kind::kSpin) {
    const ns_t current = local_now();
    if (deadline <= current && d.next_key > current) return Outcome::kTimedOut;
    if (deadline < d.next_key && d.in_doubt == 0 && !d.unhooked && slot.state == State::kRunning) {
      // Nobody else is due, nothing is in flight: time is this thread's own.
      self.base = self.slot->time = deadline;
      trace(deadline);
      if (deadline > d.now) d.now = deadline;
      d.checked = deadline;
      if (d.cpu_factor > 0) self.cpu_base = thread_cpu_ns();
      ++slot.grants;
      d.counters.self_grants.fetch_add(1, std::memory_order_relaxed);
      return Outcome::kTimedOut;
    }
  }
  lock();
  const bool wakeable = kind == Kind::kQueue || kind == Kind::kMessage;
  if (wakeable && slot.woken) {  // since it was announced
    unlock();
    return Outcome::kWoken;
  }
  publish();
  if (kind == Kind::kSpin) d.spinners = 1;
  else stir(self.base);
  set_call(slot, call, wakeable ? slot.object : 0);
  sleep_until(thread, kind, deadline);
  if (!await_grant(handlers)) {
    slot.arrived.store(1, std::memory_order_release);
    lock();
    const bool interrupted = slot.state == State::kBlocked;
    if (interrupted) {
      d.waits_for(thread->index) = 0;
      become_ready(std::max({slot.time, d.last_send.load(), d.now.load()}));
      pick();
    }
    slot.arrived.store(0);
    unlock();
    settle(thread->index);
    await_grant();
    if (interrupted) return Outcome::kInterrupted;
  }
  if (!domain) return kind == Kind::kQueue && !slot.woken ? wait_in_real_time(deadline) : Outcome::kWoken;
  return slot.woken ? Outcome::kWoken : Outcome::kTimedOut;
}

int wake(uint64_t queue, int count) {
  Domain &d = *segment;
  if (!queue) return 0;
  Guard guard;
  const ns_t when = virtual_now();
  lock();
  int woken = 0;
  while (woken < count) {
    int found = kNobody;
    for (int i = 0; i < d.high; ++i)
      if (d.waits_for(i) == queue && (found == kNobody || d.order(i) < d.order(found))) found = i;
    if (found == kNobody) break;
    Slot &slot = d.slots[found];
    d.waits_for(found) = 0;
    slot.woken = 1;
    ++woken;
    if (slot.state == State::kBlocked) {
      slot.state = State::kReady;
      set_key(found, std::max(slot.time, when));
    } else if (slot.state == State::kOutside || d.ended) {
      slot.word.store(1, std::memory_order_release);
      futex_wake(slot.word);
    }
  }
  if (woken && domain) pick();
  unlock();
  settle(self.index);
  return woken;
}

bool block(Thread *thread, Kind kind, ns_t deadline, const char *call, uint64_t object) {
  Slot &slot = *thread->slot;
  lock();
  publish();
  stir(self.base);
  set_call(slot, call, object);
  slot.entering.store(1);
  slot.arrived.store(0);
  sleep_until(thread, kind, deadline);
  slot.entering.store(0, std::memory_order_release);
  if (slot.state == State::kRunning) {  // the deadline is what comes next
    resume();
    return false;
  }
  return true;
}

bool arrive(Thread *thread) {
  Slot &slot = *thread->slot;
  Domain &d = *segment;
  slot.arrived.store(1, std::memory_order_release);  // before the lock: whoever scans must not see a sleeper
  lock();
  const bool timed_out = slot.state == State::kRunning;
  if (!timed_out && !d.ended) {
    become_ready(std::max({slot.time, d.last_send.load(), d.now.load()}));
    pick();
  }
  slot.arrived.store(0);
  unlock();
  if (!timed_out) settle(thread->index);
  await_grant();
  return timed_out;
}

}  // namespace revati::domain
