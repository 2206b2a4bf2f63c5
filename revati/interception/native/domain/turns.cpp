// The calling thread: has its turn, gives it up, and waits for the next.
#include "turns.h"

#include <linux/futex.h>
#include <unistd.h>

#include <algorithm>

#include "real.h"

namespace revati::domain {

Domain *domain = nullptr;
Domain *segment = nullptr;
int process_id = 0;
bool charge_cpu = true;
__thread Thread self;

namespace {

bool charged() { return charge_cpu && segment->cpu_factor > 0 && !self.phases; }

// The domain has ended: this process goes on in real time, so that it can still shut down.
void detach() { domain = nullptr; }

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
    slot.preempted = 0;  // it waits for the token from here on
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

}  // namespace

long futex_wait(std::atomic<uint32_t> &word, uint32_t value, int64_t real_ns) {
  const timespec timeout = to_timespec(real_ns);
  return raw(SYS_futex, as_long(&word), FUTEX_WAIT, value, real_ns >= kNever ? 0 : as_long(&timeout));
}

void futex_wake(std::atomic<uint32_t> &word) { raw(SYS_futex, as_long(&word), FUTEX_WAKE, 1); }

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

bool await_grant(Handlers handlers) {
  Slot &slot = *self.slot;
  for (;;) {
    if (segment->ended) {
      detach();
      return true;
    }
    if (slot.word.load(std::memory_order_acquire)) break;
    // Only a wait without a limit is restarted by the kernel as a read() is.
    const int64_t limit = handlers == Handlers::kRestart ? kNever : kRealSecond;
    if (futex_wait(slot.word, 0, limit) == -EINTR && handlers != Handlers::kDefer) return false;
  }
  resume();
  return true;
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

int64_t real_now_ns() { return real_clock(CLOCK_MONOTONIC); }

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
    self.slot->running.store(1);
  }
  return domain ? &self : nullptr;
}

bool computes_on() {
  return domain && !self.depth && self.slot && self.slot->preempted &&
         self.slot->state.load(std::memory_order_relaxed) == State::kReady;
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

}  // namespace revati::domain
