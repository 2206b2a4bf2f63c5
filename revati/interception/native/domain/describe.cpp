// Who waits for what, for diagnoses.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>

#include "protocol.h"
#include "real.h"

namespace revati::domain {
namespace {

std::string describe_slot(int index) {
  const Domain &d = *segment;
  const Slot &slot = d.slots[index];
  static const char *const states[] = {"free", "ready", "running", "blocked", "leaving", "real-time"};
  char line[400], deadline[48] = "";
  if (slot.state == State::kBlocked && d.key(index) < kNever)
    snprintf(deadline, sizeof deadline, " until %.6f s", d.key(index) * 1e-9);
  const int letter = slot.claimed ? state_letter(slot.pid, slot.tid) : '-';
  snprintf(line, sizeof line, "  pid %d tid %d %-15s %-9s%s in %s(%#lx)%s; its time %.6f s; for %.1f s; kernel state %c; %lu grants\n",
           slot.pid, slot.tid, slot.claimed ? slot.name : "(not started)", states[static_cast<int>(slot.state.load())],
           d.token == index ? ", has the token" : "", slot.call, static_cast<unsigned long>(slot.object), deadline,
           slot.time * 1e-9, (real_now_ns() - slot.since_real_ns) * 1e-9, letter ? letter : '?',
           static_cast<unsigned long>(slot.grants));
  return line;
}

}  // namespace

std::string describe() {
  const Domain &d = *segment;
  char head[160];
  snprintf(head, sizeof head, "virtual time %.6f s, %lu grants, token: %s\n", d.now * 1e-9,
           static_cast<unsigned long>(d.counters.grants.load()), d.token == kNobody ? "nobody" : "held");
  std::string text = head;
  for (int i = 0; i < d.high; ++i)
    if (d.slots[i].state != State::kFree) text += describe_slot(i);
  return text;
}

void trace_jump(ns_t from, ns_t to) {
  static const char *const path = getenv("REVATI_DOMAIN_TRACE");
  if (!path || !*path) return;
  const int file = static_cast<int>(raw(SYS_openat, AT_FDCWD, as_long(path), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (file < 0) return;
  char head[120];
  snprintf(head, sizeof head, "jump from %.6f s to %.6f s, by pid %d\n", from * 1e-9, to * 1e-9, process_id);
  const std::string text = head + describe();
  raw(SYS_write, file, as_long(text.data()), static_cast<long>(text.size()));
  raw(SYS_close, file);
}

}  // namespace revati::domain
