// Deaths of members: how they ended, and what they leave to the domain.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "inbox.h"
#include "monitor.h"
#include "real.h"

namespace revati::domain {
namespace {

constexpr int kBatch = 16;

std::map<int, int> pidfds;     // of members, each in `deaths`
int deaths = -1;               // an epoll instance
int followed[kSlots];          // the process that was seen in a slot

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

void follow_processes() {
  const Domain &d = *segment;
  if (deaths < 0) deaths = static_cast<int>(raw(SYS_epoll_create1, EPOLL_CLOEXEC));
  for (int i = 0; i < d.high; ++i) {
    const int pid = d.slots[i].pid;
    if (pid <= 0 || pid == followed[i] || d.slots[i].state == State::kFree) continue;
    followed[i] = pid;
    if (pidfds.count(pid)) continue;
    const int file = static_cast<int>(raw(SYS_pidfd_open, pid, 0));
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = static_cast<uint64_t>(pid);
    if (file >= 0) raw(SYS_epoll_ctl, deaths, EPOLL_CTL_ADD, file, as_long(&event));
    pidfds[pid] = file;
  }
}

void bury_one(int pid, std::string &reason) {
  const auto entry = pidfds.find(pid);
  if (entry == pidfds.end()) return;
  std::string who;
  int status = 0;
  const bool known = exit_status(pid, entry->second, status);
  lock();
  const bool accident = bury(pid, known, status, who);
  pick();
  unlock();
  if (entry->second >= 0) raw(SYS_close, entry->second);
  pidfds.erase(entry);
  std::replace(followed, followed + kSlots, pid, 0);
  if (accident && reason.empty()) reason = "process " + std::to_string(pid) + " (" + who;
}

}  // namespace

void watch_deaths(int64_t wait_ns, std::string &reason) {
  follow_processes();
  pollfd polled[] = {{deaths, POLLIN, 0},
                     {inbox_requests(), POLLIN, 0},
                     {segment->token == kNobody ? inbox_descriptor() : -1, POLLIN, 0}};
  timespec wait = to_timespec(wait_ns);
  raw(SYS_ppoll, as_long(polled), 3, as_long(&wait), 0, 8);
  if (polled[1].revents) serve_inbox();
  for (long count = polled[0].revents ? kBatch : 0; count == kBatch;) {
    epoll_event events[kBatch];
    count = raw(SYS_epoll_pwait, deaths, as_long(events), kBatch, 0, 0, 8);
    for (long i = 0; i < count; ++i) bury_one(static_cast<int>(events[i].data.u64), reason);
  }
  std::map<int, int> unseen;  // dead before it had a pidfd
  for (const auto &[pid, file] : pidfds)
    if (file < 0 && !alive(pid, pid)) unseen[pid] = file;
  for (const auto &entry : unseen) bury_one(entry.first, reason);
}

void forget_deaths() {
  for (const auto &entry : pidfds)
    if (entry.second >= 0) raw(SYS_close, entry.second);
  pidfds.clear();
  memset(followed, 0, sizeof followed);
}

}  // namespace revati::domain
