// Who runs, and when time moves.  docs/virtual_time.md explains the protocol.
#include "protocol.h"

#include <linux/futex.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "real.h"

namespace revati::domain {

Domain *domain = nullptr;
Domain *segment = nullptr;
int process_id = 0;
bool charge_cpu = true;
__thread Thread self;

namespace {

constexpr ns_t kLongJump = 1000000, kTracedJump = 1000000000;
constexpr ns_t kTracedPeriod = 600 * kTracedJump;  // in which nobody may have done more than wake again and again
// A loop may also wait for a moment, which only its own looking at a clock would tell.
constexpr ns_t kSpinQuantum = 50000, kLongSpinQuantum = 500000;
constexpr int kSpinShare = 64;  // of the time that it has spun already
// So many polls one after another are no loop yet: a turn of an event loop looks at all of its sockets.
constexpr int kFreePolls = 32;
// Nor are those of a charged phase, such as an allocator's for what has become free.
constexpr int kPhasePolls = 64;
// Until what is in flight has arrived, or is asleep: a few µs on a free core; else our core may be what it needs.
constexpr int kSpinRounds = 2, kYieldRounds = 6;
constexpr int64_t kRealSecond = 1000000000;

bool charged() { return charge_cpu && segment->cpu_factor > 0 && !self.phases; }

long futex_wait(std::atomic<uint32_t> &word, uint32_t value, int64_t real_ns) {
  const timespec timeout = to_timespec(real_ns);
  return raw(SYS_futex, as_long(&word), FUTEX_WAIT, value, as_long(&timeout));
}

void futex_wake(std::atomic<uint32_t> &word) { raw(SYS_futex, as_long(&word), FUTEX_WAKE, 1); }

void set_call(Slot &slot, const char *call, uint64_t object) {
  std::strncpy(slot.call, call, sizeof slot.call - 1);
  slot.object = object;
}

// Local time stands still from here on; resume() starts it again.
void publish() {
  self.base = local_now();
  self.slot->time = self.base;
  self.slot->since_real_ns = real_now_ns();
}

void resume() {
  self.base = std::max(self.base, self.slot->time);
  if (segment->cpu_factor > 0) self.cpu_base = thread_cpu_ns();
  self.slot->running.store(1);
}

// The domain has ended: this process goes on in real time, so that it can still shut down.
void detach() { domain = nullptr; }

// False: a signal's handler ran first.
bool await_grant(bool interruptible = false) {
  Slot &slot = *self.slot;
  for (;;) {
    if (slot.word.load(std::memory_order_acquire)) break;
    if (segment->ended) {
      detach();
      return true;
    }
    if (futex_wait(slot.word, 0, kRealSecond) == -EINTR && interruptible) return false;
  }
  resume();
  return true;
}

// Lock held; before the token is given up: spinning threads look again, at the time of what they may see.
void stir(ns_t when) {
  if (segment->spinners.load(std::memory_order_relaxed)) segment->stirred = std::min(segment->stirred, when);
}

void wake_spinners() {
  Domain &d = *segment;
  if (d.stirred >= kNever) return;
  bool any = false;
  for (int i = 0; i < d.high; ++i) {
    Slot &slot = d.slots[i];
    if (slot.state != State::kBlocked || slot.kind != Kind::kSpin) continue;
    any = true;
    const ns_t when = std::max(slot.time, d.stirred);
    if (when < d.key[i]) set_key(i, when);
  }
  d.stirred = kNever;
  d.spinners = any;
}

void become_ready(ns_t when) {  // lock held
  Slot &slot = *self.slot;
  slot.word.store(0);
  slot.running.store(0);
  slot.state = State::kReady;
  set_key(self.index, when);
}

void give_up_token() {
  if (segment->token == self.index) segment->token = kNobody;
}

// The token was taken away while this thread computed, or waited where no hook sees it.
void rejoin() {
  Guard guard;
  lock();
  Slot &slot = *self.slot;
  if (slot.state != State::kRunning) {
    if (slot.state == State::kBlocked) {
      publish();
      become_ready(std::max({self.base, segment->now.load(), segment->last_send.load()}));
    }
    pick();
    unlock();
    settle(self.index);
    await_grant();
  } else {
    unlock();
  }
}

void adopt() {  // a thread that pthread_create did not make
  Guard guard;
  lock();
  const int index = reserve(segment->now, process_id, 0);
  unlock();
  if (index == kNobody) { self.gone = true; return; }
  claim(&self, index);
}

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

}  // namespace

int64_t real_now_ns() { return real_clock(CLOCK_MONOTONIC); }

// ---- the calling thread ----

Thread *any_thread() {
  if (!domain || self.depth || self.gone) return nullptr;
  if (!self.slot) adopt();
  return self.gone || !domain ? nullptr : &self;
}

Thread *active() {
  if (!domain || self.depth || self.real_time || self.gone) return nullptr;
  if (!self.slot) adopt();
  if (self.gone || self.real_time || !domain) return nullptr;
  self.idle_before = self.idle_waits;
  self.idle_waits = 0;
  if (self.slot->state.load(std::memory_order_relaxed) != State::kRunning) rejoin();
  if (self.slot->preempted) {  // it went on without the token, which came back meanwhile
    self.slot->preempted = 0;
    self.base = std::max(self.base, self.slot->time);
  }
  return domain ? &self : nullptr;
}

ns_t local_now() {
  if (!charged()) return self.base;
  return self.base + static_cast<ns_t>((thread_cpu_ns() - self.cpu_base) * segment->cpu_factor);
}

ns_t virtual_now() {
  if (self.slot && !self.real_time && !self.gone) return local_now();
  return segment->now.load(std::memory_order_relaxed);
}

void advance(ns_t ns) { self.base += ns; }

// ---- keys, the token ----

void set_key(int index, ns_t key) {
  Domain &d = *segment;
  d.key[index] = key;
  d.order[index] = ++d.sequence;
  if (index != d.token && key < d.next_key) d.next_key = key;
}

int search() {
  const Domain &d = *segment;
  const int high = d.high;
  ns_t earliest = kNever;
  for (int i = 0; i < high; ++i) earliest = std::min(earliest, d.key[i]);
  if (earliest >= kNever) return kNobody;
  int found = kNobody;
  for (int i = 0; i < high; ++i)
    if (d.key[i] == earliest && (found == kNobody || d.order[i] < d.order[found])) found = i;
  return found;
}

void grant(int index) {
  Domain &d = *segment;
  Slot &slot = d.slots[index];
  slot.time = std::max(slot.time, d.key[index]);
  if (slot.time > d.now) d.now = slot.time;
  const bool interrupt = slot.state == State::kBlocked && slot.kind == Kind::kSignalled && index != self.index;
  d.waits_for[index] = 0;
  d.key[index] = kNever;
  ns_t next = kNever;
  for (int i = 0; i < d.high; ++i) next = std::min(next, d.key[i]);
  d.next_key = next;
  d.token = index;
  ++slot.grants;
  slot.since_real_ns = real_now_ns();
  slot.state = State::kRunning;
  slot.word.store(1, std::memory_order_release);
  d.counters.grants.fetch_add(1, std::memory_order_relaxed);
  if (index == self.index) {
    d.counters.self_grants.fetch_add(1, std::memory_order_relaxed);
  } else if (interrupt) {
    raw(SYS_tgkill, slot.pid, slot.tid, kWakeSignal);
  } else {
    futex_wake(slot.word);
  }
}

void trace(ns_t to) {
  const ns_t from = segment->now;
  if (to > from + kTracedJump || to / kTracedPeriod > from / kTracedPeriod) trace_jump(from, to);
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

void pick() {
  Domain &d = *segment;
  if (d.token != kNobody) return;
  d.duty = kNobody;
  wake_spinners();
  const int index = search();
  if (index == kNobody) return;
  const ns_t key = d.key[index];
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

// ---- waits that only the domain ends ----

void enqueue(Thread *thread, uint64_t queue, const char *call, const void *object) {
  Guard guard;
  lock();
  Slot &slot = *thread->slot;
  slot.woken = 0;
  slot.word.store(0);
  set_call(slot, call, as_long(object));
  segment->waits_for[thread->index] = queue;
  segment->order[thread->index] = ++segment->sequence;
  unlock();
}

void cancel(Thread *thread) {
  Guard guard;
  lock();
  segment->waits_for[thread->index] = 0;
  unlock();
}

Outcome wait(Thread *thread, Kind kind, ns_t deadline, const char *call, bool interruptible) {
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
  if (kind == Kind::kQueue && slot.woken) {  // between enqueue() and here
    unlock();
    return Outcome::kWoken;
  }
  publish();
  if (kind == Kind::kSpin) d.spinners = 1;
  else stir(self.base);
  set_call(slot, call, kind == Kind::kQueue ? slot.object : 0);
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
  if (!await_grant(interruptible)) {
    slot.arrived.store(1, std::memory_order_release);
    lock();
    const bool interrupted = slot.state == State::kBlocked;
    if (interrupted) {
      d.waits_for[thread->index] = 0;
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
      if (d.waits_for[i] == queue && (found == kNobody || d.order[i] < d.order[found])) found = i;
    if (found == kNobody) break;
    Slot &slot = d.slots[found];
    d.waits_for[found] = 0;
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

// ---- waits that the kernel ends ----

bool block(Thread *thread, Kind kind, ns_t deadline, const char *call, uint64_t object) {
  Slot &slot = *thread->slot;
  lock();
  publish();
  stir(self.base);
  set_call(slot, call, object);
  slot.woken = 0;
  slot.entering.store(1);
  slot.arrived.store(0);
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

// ---- effects and observations ----

namespace {

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

// ---- slots ----

int reserve(ns_t time, int pid, int parent) {
  Domain &d = *segment;
  for (int i = 0; i < kSlots; ++i) {
    Slot &slot = d.slots[i];
    if (slot.state != State::kFree) continue;
    const uint32_t generation = slot.generation + 1;
    std::memset(static_cast<void *>(&slot), 0, sizeof slot);
    slot.generation = generation;
    slot.pid = pid;
    slot.parent = parent;
    slot.time = time;
    slot.since_real_ns = real_now_ns();
    set_call(slot, "its start", 0);
    d.waits_for[i] = 0;
    d.high = std::max(d.high, i + 1);
    slot.state = State::kReady;
    set_key(i, time);
    return i;
  }
  return kNobody;
}

void release(int index) {
  Domain &d = *segment;
  d.slots[index].state = State::kFree;
  d.slots[index].claimed = 0;
  d.key[index] = kNever;
  d.waits_for[index] = 0;
  if (d.token == index) d.token = kNobody;
  if (d.duty == index) d.duty = kNobody;
}

void claim(Thread *thread, int index) {
  Guard guard;
  Slot &slot = segment->slots[index];
  lock();
  slot.pid = process_id;
  slot.tid = static_cast<int32_t>(raw(SYS_gettid));
  slot.parent = getppid();
  slot.claimed = 1;
  slot.handle = pthread_self();
  raw(157 /* SYS_prctl */, 16 /* PR_GET_NAME */, as_long(slot.name));
  thread->index = index;
  thread->slot = &slot;
  thread->base = slot.time;
  if (slot.state == State::kBlocked) {  // lost the token on its way into an exec
    slot.word.store(0);
    slot.running.store(0);
    slot.state = State::kReady;
    set_key(index, std::max(slot.time, segment->now.load()));
  }
  pick();
  unlock();
  settle(index);
  await_grant();
}

void leave_thread(Thread *thread) {
  if (!segment || !thread->slot || thread->gone) return;
  Guard guard;
  Domain &d = *segment;
  Slot &slot = *thread->slot;
  lock();
  publish();
  sent(thread);
  bool joined = false;
  for (int i = 0; i < d.high; ++i)
    joined |= d.slots[i].state == State::kBlocked && d.slots[i].pid == process_id &&
              d.slots[i].object == slot.handle && !std::strcmp(d.slots[i].call, "pthread_join");
  slot.state = State::kLeaving;
  d.key[thread->index] = kNever;
  d.waits_for[thread->index] = 0;
  give_up_token();
  if (!d.ended) pick();
  unlock();
  if (!joined) {
    settle(thread->index);
    lock();
    release(thread->index);
    if (!d.ended) pick();
    unlock();
  }
  thread->gone = true;
}

// An orderly exit.  The token stays with the process until the monitor sees that the kernel has done with it.
void leave_process() {
  if (!segment) return;
  Guard guard;
  sent(&self);
  for (int i = 0; i < segment->high; ++i)
    if (segment->slots[i].pid == process_id) segment->slots[i].exit_expected = 1;
}

}  // namespace revati::domain
