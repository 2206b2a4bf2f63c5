// Slots: births and deaths of threads and processes, as they see them themselves.
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "real.h"
#include "turns.h"

namespace revati::domain {

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
    d.waits_for(i) = 0;
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
  d.key(index) = kNever;
  d.waits_for(index) = 0;
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
  d.key(thread->index) = kNever;
  d.waits_for(thread->index) = 0;
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
