// Is anything in flight: has the kernel woken a thread that has not come back to the domain yet?
//
// /proc/<pid>/task/<tid>/wchan reads "0" exactly for threads that are runnable.  A thread may also wait for a
// page on its way back: a name is trusted only once its thread was seen in state S.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "protocol.h"
#include "real.h"

namespace revati::domain {
namespace {

constexpr int kFirstFile = 800;  // far from the numbers that programs expect
constexpr int kNames = 64;

int files[kSlots];               // wchan of a slot's thread, +1
uint32_t generations[kSlots];
uint64_t sleeping_names[kNames];
int names = 0;

int open_high(const char *path) {
  return move_high(static_cast<int>(raw(SYS_openat, AT_FDCWD, as_long(path), O_RDONLY | O_CLOEXEC)));
}

// Length of the name in buffer; 0: the thread is gone.
long read_wchan(int index, char *buffer, long size) {
  const Slot &slot = segment->slots[index];
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (!files[index] || generations[index] != slot.generation || attempt) {
      if (files[index] && generations[index] != slot.generation) raw(SYS_close, files[index] - 1);
      char path[64];
      std::snprintf(path, sizeof path, "/proc/%d/task/%d/wchan", slot.pid, slot.tid);
      const int file = open_high(path);
      files[index] = file < 0 ? 0 : file + 1;
      generations[index] = slot.generation;
      if (file < 0) return 0;
    }
    const long length = raw(SYS_pread64, files[index] - 1, as_long(buffer), size);
    // A program may have closed our descriptor and opened something else under its number.
    if (length > 0 && (buffer[0] == '0' || buffer[0] == '_' || (buffer[0] >= 'a' && buffer[0] <= 'z'))) return length;
    files[index] = 0;
  }
  return 0;
}

uint64_t hash(const char *text, long length) {
  uint64_t value = 1469598103934665603ULL;
  for (long i = 0; i < length; ++i) value = (value ^ static_cast<unsigned char>(text[i])) * 1099511628211ULL;
  return value;
}

bool asleep(int index) {
  const Slot &slot = segment->slots[index];
  if (slot.kind == Kind::kUnhooked) {
    const int state = state_letter(slot.pid, slot.tid);
    return state == 'S' || state == 0;
  }
  char name[64];
  const long length = read_wchan(index, name, sizeof name);
  if (length == 0) return true;  // gone: the monitor cleans up
  if (length == 1 && name[0] == '0') return false;
  const uint64_t key = hash(name, length);
  for (int i = 0; i < names; ++i)
    if (sleeping_names[i] == key) return true;
  if (state_letter(slot.pid, slot.tid) != 'S') return false;
  if (names < kNames) sleeping_names[names++] = key;
  return true;
}

// A thread that sleeps on its way into the call would not hear of a message yet.  The flag of arrival comes last: a
// thread that was asleep in its call when it was looked at, and that has set its flag since, is on its way; one that
// sleeps on the domain's lock has set it before.
bool flying(int index) {
  const Slot &slot = segment->slots[index];
  if (index == self.index && process_id) return false;
  segment->counters.scanned.fetch_add(1, std::memory_order_relaxed);
  if (slot.state == State::kLeaving) return alive(slot.pid, slot.tid);
  if (slot.state != State::kBlocked || (slot.kind < Kind::kKernel && !slot.signalled)) return false;
  return slot.entering.load(std::memory_order_acquire) || !asleep(index) || slot.arrived.load(std::memory_order_acquire);
}

}  // namespace

int move_high(int low) {
  if (low < 0) return low;
  const int high = static_cast<int>(raw(SYS_fcntl, low, F_DUPFD_CLOEXEC, kFirstFile));
  if (high < 0) return low;
  raw(SYS_close, low);
  return high;
}

int state_letter(int pid, int tid) {
  char path[64], text[512];
  std::snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
  const int file = static_cast<int>(raw(SYS_openat, AT_FDCWD, as_long(path), O_RDONLY | O_CLOEXEC));
  if (file < 0) return 0;
  const long length = raw(SYS_read, file, as_long(text), sizeof text - 1);
  raw(SYS_close, file);
  if (length <= 0) return 0;
  text[length] = 0;
  const char *end = std::strrchr(text, ')');
  return end && end[1] ? end[2] : 0;
}

bool alive(int pid, int tid) {
  const int state = state_letter(pid, tid);
  return state && state != 'Z' && state != 'X';
}

void until_asleep(int index) {
  Slot &slot = segment->slots[index];
  for (int round = 0; round < 1000; ++round) {
    if (index == self.index || slot.state != State::kBlocked || slot.kind == Kind::kUnhooked) break;
    lock();
    const bool settled = slot.state != State::kBlocked || (!slot.entering && asleep(index)) || slot.arrived;
    unlock();
    if (settled || state_letter(slot.pid, slot.tid) == 'T') break;
    const timespec pause{0, 20000};
    raw(SYS_nanosleep, as_long(&pause), 0);
  }
}

void settle_edges() {
  for (int i = 0; i < segment->high; ++i)
    if (segment->slots[i].kind == Kind::kEdge) until_asleep(i);
}

bool in_flight() {
  Domain &d = *segment;
  d.counters.scans.fetch_add(1, std::memory_order_relaxed);
  if (d.suspect < d.high && flying(d.suspect)) return true;
  bool unhooked = false;
  for (int i = 0; i < d.high; ++i) {
    const State state = d.slots[i].state;
    unhooked |= state == State::kBlocked && d.slots[i].kind == Kind::kUnhooked;
    if (state != State::kBlocked && state != State::kLeaving) continue;
    if (flying(i)) {
      d.suspect = i;
      return true;
    }
    if (state == State::kLeaving && i != self.index) release(i);
  }
  d.unhooked = unhooked;
  return false;
}

}  // namespace revati::domain
