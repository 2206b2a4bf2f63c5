// What no hook sees: programs that have not joined, or never will, and threads that wait or compute elsewhere.
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "monitor.h"
#include "real.h"

namespace revati::domain {
namespace {

constexpr int64_t kUnclaimed = 20000 * kMs;  // a reserved slot whose program never joins

std::map<int, int64_t> unseen_cpu_ns;

std::string contents(int pid, const char *name) {
  char path[64], part[4096];
  snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
  const int file = static_cast<int>(raw(SYS_openat, AT_FDCWD, as_long(path), O_RDONLY | O_CLOEXEC));
  if (file < 0) return "";
  std::string text;
  for (long length; (length = raw(SYS_read, file, as_long(part), sizeof part)) > 0;) text.append(part, length);
  raw(SYS_close, file);
  return text;
}

bool is_static(int pid) {
  char path[64], head[4096];
  snprintf(path, sizeof path, "/proc/%d/exe", pid);
  const int file = static_cast<int>(raw(SYS_openat, AT_FDCWD, as_long(path), O_RDONLY | O_CLOEXEC));
  if (file < 0) return false;
  const long length = raw(SYS_read, file, as_long(head), sizeof head);
  raw(SYS_close, file);
  const auto *elf = reinterpret_cast<const Elf64_Ehdr *>(head);
  if (length < static_cast<long>(sizeof *elf) || memcmp(elf->e_ident, ELFMAG, SELFMAG) != 0) return false;
  for (int i = 0; i < elf->e_phnum; ++i) {
    const size_t at = elf->e_phoff + static_cast<size_t>(i) * elf->e_phentsize;
    if (at + sizeof(Elf64_Phdr) > static_cast<size_t>(length)) return false;
    if (reinterpret_cast<const Elf64_Phdr *>(head + at)->p_type == PT_INTERP) return false;
  }
  return true;
}

bool is_member(int pid) {
  const Domain &d = *segment;
  for (int i = 0; i < d.high; ++i)
    if (d.slots[i].pid == pid && d.slots[i].claimed && d.slots[i].state != State::kFree) return true;
  return false;
}

// A program without a dynamic loader, or one whose environment was cleaned.  A member's slots are for threads
// about to start, and what it has made of its environment since (setproctitle overwrites it) says nothing.
bool never_joins(int pid) {
  if (is_member(pid)) return false;
  const std::string environment = contents(pid, "environ");
  return is_static(pid) || (!environment.empty() && environment.find("REVATI_DOMAIN=") == std::string::npos);
}

int64_t process_cpu_ns(int pid) {
  timespec used{};
  const long clock = static_cast<int>((~static_cast<unsigned>(pid) << 3) | 2);  // as clock_getcpuclockid() makes it
  return raw(SYS_clock_gettime, clock, as_long(&used)) == 0 ? to_ns(used) : 0;
}

}  // namespace

void wait_unhooked(Slot &slot, const char *call) {
  Domain &d = *segment;
  slot.state = State::kBlocked;
  slot.kind = Kind::kUnhooked;
  slot.time = std::max<ns_t>(slot.time, d.now);
  slot.since_real_ns = real_now_ns();
  slot.running = 0;
  slot.word = 0;
  strncpy(slot.call, call, sizeof slot.call - 1);
  const int index = static_cast<int>(&slot - d.slots);
  d.key(index) = kNever;
  if (d.token == index) d.token = kNobody;
  d.unhooked = 1;
}

// A process of one slot that waits unseen, and computes: in threads that no hook sees (ptxas), or as a program that
// has not joined.  Time stands still, as beside any other member that computes.
void look_after_unseen() {
  Domain &d = *segment;
  if (!d.unhooked) return unseen_cpu_ns.clear();
  std::map<int, int> slots;
  for (int i = 0; i < d.high; ++i)
    if (d.slots[i].state != State::kFree) ++slots[d.slots[i].pid];
  for (int i = 0; i < d.high; ++i) {
    Slot &slot = d.slots[i];
    if (slot.state != State::kBlocked || slot.kind != Kind::kUnhooked || slots[slot.pid] != 1) continue;
    const int64_t used = process_cpu_ns(slot.pid);
    int64_t &before = unseen_cpu_ns[slot.pid];
    if (used > before) slot.since_real_ns = real_now_ns();
    before = used;
  }
}

// Slots of programs that have not joined; one that never will takes real time, like a wait that no hook sees.
bool look_after_unclaimed() {
  Domain &d = *segment;
  const int64_t now = real_now_ns();
  bool any = false;
  for (int i = 0; i < d.high; ++i) any |= d.slots[i].state != State::kFree && !d.slots[i].claimed;
  if (!any) return false;
  lock();
  for (int i = 0; i < d.high; ++i) {
    Slot &slot = d.slots[i];
    if (slot.state == State::kFree || slot.claimed) continue;
    const bool outside = slot.kind == Kind::kUnhooked;
    if (now - slot.since_real_ns > (outside ? kUnhookedPatience : kUnclaimed)) {
      release(i);
    } else if (!outside && slot.pid > 0 && never_joins(slot.pid)) {
      slot.tid = slot.pid;
      wait_unhooked(slot, "a program in real time");
    }
  }
  pick();
  unlock();
  return true;
}

}  // namespace revati::domain
