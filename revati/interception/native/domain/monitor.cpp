// The launcher's side: makes a domain, looks after it, and says what it waits for.
//
// A monitor calls revati_domain_watch() all the time: it cleans up after killed processes, takes the token
// from threads that wait where no hook sees it, and repeats jumps whose thread has gone.
#include <elf.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <string>

#include "inbox.h"
#include "real.h"

namespace revati::domain {
namespace {

constexpr int64_t kMs = 1000000;
constexpr int64_t kBlockedUnseen = 8 * kMs;    // asleep with the token for so long: waits outside the hooks
constexpr int64_t kKeepsToken = 5000 * kMs;     // likewise, for a mutex that a real-time thread holds
constexpr int64_t kComputesLong = 500 * kMs;   // CPU time without a hook, after which others that are due go on
constexpr int64_t kUnclaimed = 20000 * kMs;    // a reserved slot whose program never joins

struct Watch {
  std::map<int, int> pidfds;
  std::map<int, int64_t> unseen_cpu_ns;  // of processes of which no hook sees anything
  uint64_t grants = 0;
  int64_t since = 0, cpu_at_grant = 0, last_progress = 0;
  bool asleep_before = false;
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

bool process_alive(int pid) { return alive(pid, pid); }

// How a dead process ended, as waitpid tells: from the zombie, or (Linux 6.15) from the pidfd of one reaped.
bool find_exit_status(int pid, int pidfd, int &status) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  const int file = static_cast<int>(raw(SYS_openat, AT_FDCWD, as_long(path), O_RDONLY | O_CLOEXEC));
  if (file >= 0) {
    const long length = raw(SYS_read, file, as_long(text), sizeof text - 1);
    raw(SYS_close, file);
    text[length > 0 ? length : 0] = 0;
    const char *field = strrchr(text, ')');
    if (field && field[1] && field[2] == 'Z') {
      const char *last = strrchr(text, ' ');  // exit_code is the last field
      if (last) { status = atoi(last + 1); return true; }
    }
  }
  struct { uint64_t mask, cgroup; uint32_t ids[11]; int32_t exit_code; } information{};
  static_assert(sizeof information == 64);
  constexpr uint64_t kExit = 1 << 3;
  information.mask = kExit;
  if (pidfd < 0 || raw(SYS_ioctl, pidfd, 0xC040FF0B /* PIDFD_GET_INFO */, as_long(&information)) < 0) return false;
  status = information.exit_code;
  return information.mask & kExit;
}

bool exit_status(int pid, int pidfd, int &status) {
  for (int attempt = 0; attempt < 20; ++attempt) {  // between its death and its reaping, neither knows
    if (find_exit_status(pid, pidfd, status)) return true;
    if (pidfd < 0) return false;
    const timespec pause{0, 200000};
    raw(SYS_nanosleep, as_long(&pause), 0);
  }
  return false;
}

// Ends that a pipeline or a shutdown brings about all the time.
bool ordinary(int signal) {
  return signal == 0 || signal == SIGPIPE || signal == SIGTERM || signal == SIGINT || signal == SIGHUP ||
         signal == SIGALRM || signal == SIGQUIT || signal == SIGUSR1 || signal == SIGUSR2;
}

// Frees the slots of a dead process; true: nobody can have wanted its end.
bool bury(int pid, bool known, int status, std::string &who) {
  Domain &d = *segment;
  bool accident = false;
  for (int i = 0; i < d.high; ++i) {
    Slot &slot = d.slots[i];
    if (slot.pid != pid || slot.state == State::kFree) continue;
    const bool member = slot.claimed || slot.kind != Kind::kUnhooked;
    if (known ? member && !ordinary(status & 0x7f) && !slot.exit_expected
              : slot.claimed && slot.state != State::kLeaving && !slot.exit_expected) {
      accident = true;
      if (slot.tid == pid || who.empty()) who = slot.name;
    }
    release(i);
  }
  if (accident) who += known ? ") was ended by signal " + std::to_string(status & 0x7f) : ") was killed or crashed";
  d.in_doubt = 2;
  return accident;
}

void follow_processes() {  // a pidfd for each member
  Domain &d = *segment;
  for (int i = 0; i < d.high; ++i) {
    const Slot &slot = d.slots[i];
    const int pid = slot.pid;
    if (slot.state == State::kFree || pid <= 0 || watch.pidfds.count(pid)) continue;
    watch.pidfds[pid] = static_cast<int>(raw(SYS_pidfd_open, pid, 0));
  }
}

// Waits for a death, at most for a while; also for new members, and for messages from outside where nobody runs.
void bury_the_dead(int64_t wait_ns, std::string &reason) {
  pollfd polled[kSlots + 2];
  int pids[kSlots], count = 0;
  for (const auto &[pid, file] : watch.pidfds)
    if (count < kSlots) { polled[count] = {file, POLLIN, 0}; pids[count++] = pid; }
  polled[count] = {inbox_requests(), POLLIN, 0};
  polled[count + 1] = {segment->token == kNobody ? inbox_descriptor() : -1, POLLIN, 0};
  timespec wait = to_timespec(wait_ns);
  raw(SYS_ppoll, as_long(polled), count + 2, as_long(&wait), 0, 8);
  if (polled[count].revents) serve_inbox();
  for (int i = 0; i < count; ++i) {
    const bool gone = polled[i].fd < 0 ? !process_alive(pids[i]) : polled[i].revents != 0;
    if (!gone) continue;
    std::string who;
    int status = 0;
    const bool known = exit_status(pids[i], polled[i].fd, status);
    lock();
    const bool accident = bury(pids[i], known, status, who);
    pick();
    unlock();
    if (polled[i].fd >= 0) raw(SYS_close, polled[i].fd);
    watch.pidfds.erase(pids[i]);
    if (accident && reason.empty())
      reason = "process " + std::to_string(pids[i]) + " (" + who;
  }
}

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

int64_t process_cpu_ns(int pid) {
  timespec used{};
  const long clock = static_cast<int>((~static_cast<unsigned>(pid) << 3) | 2);  // as clock_getcpuclockid() makes it
  return raw(SYS_clock_gettime, clock, as_long(&used)) == 0 ? to_ns(used) : 0;
}

// A process of one slot that waits unseen, and computes: in threads that no hook sees (ptxas), or as a program that
// has not joined.  Time stands still, as beside any other member that computes.
void look_after_unseen() {
  Domain &d = *segment;
  if (!d.unhooked) return watch.unseen_cpu_ns.clear();
  std::map<int, int> slots;
  for (int i = 0; i < d.high; ++i)
    if (d.slots[i].state != State::kFree) ++slots[d.slots[i].pid];
  for (int i = 0; i < d.high; ++i) {
    Slot &slot = d.slots[i];
    if (slot.state != State::kBlocked || slot.kind != Kind::kUnhooked || slots[slot.pid] != 1) continue;
    const int64_t used = process_cpu_ns(slot.pid);
    int64_t &before = watch.unseen_cpu_ns[slot.pid];
    if (used > before) slot.since_real_ns = real_now_ns();
    before = used;
  }
}

// Slots of programs that have not joined; one that never will takes real time, like a wait that no hook sees.
void look_after_unclaimed() {
  Domain &d = *segment;
  const int64_t now = real_now_ns();
  bool any = false;
  for (int i = 0; i < d.high; ++i) any |= d.slots[i].state != State::kFree && !d.slots[i].claimed;
  if (!any) return;
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
    return;
  }
  if (!slot.claimed) return;
  if (!slot.running) return wake_holder(holder);  // whoever granted it the token may have been killed
  const int letter = state_letter(slot.pid, slot.tid);
  const bool asleep = letter == 'S';
  if (asleep && watch.asleep_before && now - watch.since > (slot.keeps_token ? kKeepsToken : kBlockedUnseen)) {
    lock();
    if (d.token == holder && d.counters.grants == grants && slot.running) {
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
      if (d.token == holder && d.counters.grants == grants && slot.running && due) {
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
  for (const auto &entry : watch.pidfds)
    if (entry.second >= 0) close(entry.second);
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

// One round of the monitor, which lasts `wait_ns` unless a process ends.  `reason` (512 bytes) gets text when a process died without leaving.
// Returns 1 when the domain has ended, 2 when a process died, else 0.
REVATI_API int revati_domain_watch(int64_t wait_ns, char *reason) {
  if (segment->ended) return 1;
  follow_processes();
  std::string died;
  bury_the_dead(wait_ns, died);
  look_after_token();
  look_after_unclaimed();
  look_after_unseen();
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
