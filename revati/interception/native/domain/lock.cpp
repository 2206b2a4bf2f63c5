// The domain's lock: robust, so that a process killed inside leaves a domain that can go on.
#include <sched.h>

#include "protocol.h"
#include "real.h"

namespace revati::domain {
namespace {

// What the dead owner may have left undone: the wake of a granted thread, and the earliest key.
void repair() {
  Domain &d = *segment;
  ns_t next = kNever;
  for (int i = 0; i < d.high; ++i)
    if (i != d.token && d.key[i] < next) next = d.key[i];
  d.next_key = next;
  d.in_doubt = 2;
  const int holder = d.token;
  if (holder == kNobody) return;
  Slot &slot = d.slots[holder];
  slot.state = State::kRunning;
  slot.word.store(1);
  d.key[holder] = kNever;
  raw(SYS_futex, as_long(&slot.word), 1 /* FUTEX_WAKE */, 1);
  if (slot.kind == Kind::kSignalled && slot.tid) raw(SYS_tgkill, slot.pid, slot.tid, kWakeSignal);
}

}  // namespace

void lock() {
  if (REAL(pthread_mutex_lock)(&segment->lock) == EOWNERDEAD) {
    pthread_mutex_consistent(&segment->lock);
    repair();
  }
}

void unlock() { REAL(pthread_mutex_unlock)(&segment->lock); }

}  // namespace revati::domain
