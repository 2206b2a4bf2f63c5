// The launcher's side: makes a domain, looks after it, and says what it waits for.
//
// A monitor calls revati_domain_watch() all the time: it cleans up after killed processes, takes the token
// from threads that wait where no hook sees it, and repeats jumps whose thread has gone.
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "inbox.h"
#include "monitor.h"
#include "real.h"

namespace revati::domain {
namespace {

constexpr int64_t kRound = 4 * kMs;
constexpr int64_t kCalmRound = 16 * kMs;        // while the token goes round, and all programs have joined
constexpr int64_t kBlockedUnseen = 8 * kMs;    // asleep with the token for so long: waits outside the hooks
constexpr int64_t kKeepsToken = 5000 * kMs;     // likewise, for a mutex that a real-time thread holds
constexpr int64_t kComputesLong = 500 * kMs;   // CPU time without a hook, after which others that are due go on

struct Watch {
  uint64_t grants = 0;
  int64_t since = 0, cpu_at_grant = 0;
  bool asleep_before = false;
  bool calm = false;
};
Watch watch;

int64_t cpu_ns(int pid, int tid) {
  char path[64], text[512];
  snprintf(path, sizeof path, "/proc/%d/task/%d/schedstat", pid, tid);
  const int file = static_cast<int>(raw(SYS_openat, AT_FDCWD, as_long(path), O_RDONLY | O_CLOEXEC));
  if (file < 0) return 0;
  const long length = raw(SYS_read, file, as_long(text), sizeof text - 1);
  raw(SYS_close, file);
  text[length > 0 ? length : 0] = 0;
  return atoll(text);
}

void end(const std::string &reason) {
  Domain &d = *segment;
  int expected = 0;
  snprintf(d.reason, sizeof d.reason, "%s", reason.c_str());
  if (!d.ended.compare_exchange_strong(expected, 1)) return;
  for (int i = 0; i < d.high; ++i) {
    Slot &slot = d.slots[i];
    if (slot.state == State::kFree) continue;
    if (slot.state == State::kBlocked && slot.kind == Kind::kMessage) slot.word = 1;  // it may be about to sleep
    raw(SYS_futex, as_long(&slot.word), 1, INT32_MAX);
  }
}

void look_after_token() {
  Domain &d = *segment;
  const int64_t now = real_now_ns();
  const int holder = d.token;
  const uint64_t grants = d.counters.grants;
  if (holder == kNobody) {
    lock();
    if (d.token == kNobody && (d.duty == kNobody || !alive(d.slots[d.duty].pid, d.slots[d.duty].tid))) pick();
    unlock();
    watch.asleep_before = false;
    return;
  }
  lock();
  collect();  // from outside: whoever has the token may keep it
  unlock();
  Slot &slot = d.slots[holder];
  if (grants != watch.grants) {
    watch.grants = grants;
    watch.since = now;
    watch.asleep_before = false;
    watch.cpu_at_grant = -1;
    watch.calm = true;
    return;
  }
  if (!slot.claimed) return;
  // Whoever granted it the token may have been killed.  Who lost it while computing takes it at its next hook.
  const auto runs = [&slot] { return slot.running || slot.preempted; };
  if (!runs()) return wake_holder(holder);
  const int letter = state_letter(slot.pid, slot.tid);
  const bool asleep = letter == 'S';
  if (asleep && watch.asleep_before && now - watch.since > (slot.keeps_token ? kKeepsToken : kBlockedUnseen)) {
    lock();
    if (d.token == holder && d.counters.grants == grants && runs()) {
      wait_unhooked(slot, "an unhooked call");
      d.in_doubt = 2;
      d.counters.preemptions++;
      pick();
    }
    unlock();
  } else if (letter == 'R') {
    const int64_t cpu = cpu_ns(slot.pid, slot.tid);
    if (watch.cpu_at_grant < 0) watch.cpu_at_grant = cpu;
    if (cpu - watch.cpu_at_grant > kComputesLong) {
      lock();
      const int next = search();
      const bool due = next != kNobody && d.key(next) <= d.now;
      if (d.token == holder && d.counters.grants == grants && runs() && due) {
        slot.word = 0;
        slot.preempted = 1;
        slot.state = State::kReady;
        d.token = kNobody;
        set_key(holder, std::max<ns_t>(slot.time, d.now));  // no jump past it
        d.in_doubt = 2;
        d.counters.preemptions++;
        pick();
      }
      unlock();
    }
  }
  watch.asleep_before = asleep;
}

// Everybody waits, and nobody but the outside world could end it.
bool stuck() {
  const Domain &d = *segment;
  if (d.token != kNobody) return false;
  bool any = false;
  for (int i = 0; i < d.high; ++i) {
    const State state = d.slots[i].state;
    if (state == State::kReady || state == State::kRunning || state == State::kLeaving) return false;
    if (state == State::kBlocked && d.key(i) < kNever) return false;
    any |= state == State::kBlocked;
  }
  return any;
}

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

// Makes the segment at a path that must not exist yet.  0, or an errno.
REVATI_API int revati_domain_create(const char *path, int64_t skew_ns, double cpu_factor, const char *real_time_threads,
                                    const char *idle_libraries) {
  const int file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) return errno;
  void *memory = MAP_FAILED;
  if (ftruncate(file, sizeof(Domain)) == 0)
    memory = mmap(nullptr, sizeof(Domain), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const int error = errno;
  close(file);
  if (memory == MAP_FAILED) return error;
  Domain &d = *static_cast<Domain *>(memory);
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&d.lock, &attributes);
  d.bytes = sizeof(Domain);
  d.skew = skew_ns;
  d.cpu_factor = cpu_factor;
  snprintf(d.real_time_threads, sizeof d.real_time_threads, "%s", real_time_threads);
  snprintf(d.idle_libraries, sizeof d.idle_libraries, "%s", idle_libraries);
  d.epoch_real = real_clock(CLOCK_REALTIME);
  d.epoch_mono = real_clock(CLOCK_MONOTONIC);
  d.epoch_boot = real_clock(CLOCK_BOOTTIME);
  d.token = kNobody;
  d.duty = kNobody;
  d.next_key = kNever;
  d.stirred = kNever;
  for (Keys &keys : d.keys) std::fill(std::begin(keys.key), std::end(keys.key), kNever);
  const char *broken = getenv("REVATI_TEST_BREAK");  // tests only: the checkers must see it
  d.break_scan = broken && !strcmp(broken, "scan");
  d.break_reserve = broken && !strcmp(broken, "reserve");
  d.magic = kMagic;
  munmap(memory, sizeof(Domain));
  return 0;
}

REVATI_API int revati_domain_attach(const char *path) {
  const int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return errno;
  void *memory = mmap(nullptr, sizeof(Domain), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return errno;
  if (static_cast<Domain *>(memory)->magic != kMagic) {
    munmap(memory, sizeof(Domain));
    return EPROTO;
  }
  if (segment) munmap(segment, sizeof(Domain));
  segment = static_cast<Domain *>(memory);
  forget_deaths();
  watch = Watch{};
  return 0;
}

// A slot for a program that the calling process is about to start: no jump before it has joined.
REVATI_API int revati_domain_reserve() {
  lock();
  const int index = reserve(segment->now, 0, getpid());
  unlock();
  return index;
}

// Looks after the domain for `wait_ns`, or until a process dies.  `reason` (512 bytes) gets text when a process died
// without leaving.  Returns 1 when the domain has ended, 2 when a process died, else 0.
REVATI_API int revati_domain_watch(int64_t wait_ns, char *reason) {
  std::string died;
  for (const int64_t end = real_now_ns() + wait_ns; died.empty() && real_now_ns() < end;) {
    if (segment->ended) return 1;
    watch_deaths(watch.calm ? kCalmRound : kRound, died);
    watch.calm = false;
    look_after_token();
    if (look_after_unclaimed() || segment->unhooked) watch.calm = false;
    look_after_unseen();
  }
  snprintf(reason, 512, "%s", died.c_str());
  return died.empty() ? 0 : 2;
}

REVATI_API int revati_domain_stuck() { return stuck(); }
REVATI_API void revati_domain_end(const char *reason) { end(reason); }
REVATI_API int revati_domain_ended(char *reason) {
  if (segment->ended) snprintf(reason, 512, "%s", segment->reason);
  return segment->ended;
}
REVATI_API int64_t revati_domain_now() { return segment->now; }

REVATI_API void revati_domain_describe(char *text, int size) { snprintf(text, size, "%s", describe().c_str()); }

// Process ids of the members; returns how many.
REVATI_API int revati_domain_members(int *pids, int size) {
  int count = 0;
  for (int i = 0; i < segment->high && count < size; ++i) {
    const int pid = segment->slots[i].pid;
    if (segment->slots[i].state == State::kFree || pid <= 0) continue;
    if (std::find(pids, pids + count, pid) == pids + count) pids[count++] = pid;
  }
  return count;
}

// grants, of them to the same thread, jumps, scans, scanned threads, retries, sends, preemptions, settling ns
REVATI_API void revati_domain_counters(int64_t *values) {
  const Counters &c = segment->counters;
  const int64_t all[] = {static_cast<int64_t>(c.grants), static_cast<int64_t>(c.self_grants), static_cast<int64_t>(c.jumps),
                         static_cast<int64_t>(c.scans), static_cast<int64_t>(c.scanned), static_cast<int64_t>(c.retries),
                         static_cast<int64_t>(c.sends), static_cast<int64_t>(c.preemptions), c.settle_ns};
  std::copy(std::begin(all), std::end(all), values);
}
