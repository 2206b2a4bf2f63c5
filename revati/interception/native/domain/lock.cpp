// The domain's lock: robust, so that a process killed inside leaves a domain that can go on.
#include <algorithm>

#include "inbox.h"
#include "real.h"

namespace revati::domain {
namespace {

// What the dead owner may have left undone: the wake of a granted thread, the earliest key, and messages that it had
// taken from the inbox (their receivers look for themselves).
void repair() {
  Domain &d = *segment;
  for (int i = 0; i < d.high; ++i) {
    Slot &slot = d.slots[i];
    if (slot.state != State::kBlocked || slot.kind != Kind::kMessage) continue;
    slot.woken = 1;
    slot.state = State::kReady;
    d.key(i) = std::max(slot.time, d.now.load());
  }
  ns_t next = kNever;
  for (int i = 0; i < d.high; ++i)
    if (i != d.token && d.key(i) < next) next = d.key(i);
  d.next_key = next;
  d.in_doubt = 2;
  const int holder = d.token;
  if (holder == kNobody) return;
  Slot &slot = d.slots[holder];
  slot.state = State::kRunning;
  slot.word.store(1);
  d.key(holder) = kNever;
  wake_holder(holder);
}

}  // namespace

void lock() {
  if (REAL(pthread_mutex_lock)(&segment->lock) == EOWNERDEAD) {
    pthread_mutex_consistent(&segment->lock);
    repair();
  }
}

// The one that gets the token next may run on this very core: not before the lock is free.
void unlock() {
  const int to_wake = self.to_wake;
  self.to_wake = kNobody;
  REAL(pthread_mutex_unlock)(&segment->lock);
  if (to_wake != kNobody) wake_holder(to_wake);
}

}  // namespace revati::domain
