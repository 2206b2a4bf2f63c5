// A process joins its domain, forks, executes programs, and leaves.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "inbox.h"
#include "real.h"

extern char **environ;

namespace revati::domain {
namespace {

void on_wake_signal(int) { self.signalled = true; }

void install_wake_signal() {
  struct sigaction action;
  std::memset(&action, 0, sizeof action);
  action.sa_handler = on_wake_signal;  // without SA_RESTART: it ends the wait
  REAL(sigaction)(kWakeSignal, &action, nullptr);
}

// The slot that an exec left us, or one that our parent reserved; the others of this process are history.
int find_reserved() {
  Domain &d = *segment;
  const int parent = getppid();
  int found = kNobody, adopted = kNobody;
  for (int i = 0; i < d.high; ++i) {
    Slot &slot = d.slots[i];
    if (slot.state == State::kFree) continue;
    if (slot.pid == process_id && !slot.claimed && found == kNobody) found = i;
    if (slot.pid == 0 && !slot.claimed && slot.parent == parent && adopted == kNobody) adopted = i;
  }
  if (found == kNobody) found = adopted;
  for (int i = 0; i < d.high; ++i)
    if (i != found && d.slots[i].pid == process_id && d.slots[i].state != State::kFree) release(i);
  if (found == kNobody) return reserve(d.now, process_id, parent);
  d.slots[found].pid = process_id;  // nobody else's, if another child of the same parent joins now
  return found;
}

}  // namespace

void join() {
  const char *path = getenv("REVATI_DOMAIN");
  if (!path || !*path || segment) return;
  const int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) {
    fprintf(stderr, "revati: REVATI_DOMAIN=%s: %s; this process runs in real time\n", path, strerror(errno));
    return;
  }
  void *memory = mmap(nullptr, sizeof(Domain), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  raw(SYS_close, file);
  if (memory == MAP_FAILED || static_cast<Domain *>(memory)->magic != kMagic) {
    fprintf(stderr, "revati: REVATI_DOMAIN=%s is no domain of this version; this process runs in real time\n", path);
    return;
  }
  segment = static_cast<Domain *>(memory);
  if (segment->ended) return;
  process_id = getpid();
  install_wake_signal();
  if (!fetch_inbox()) {
    if (segment->ended) return;
    fprintf(stderr, "revati: the domain's monitor does not answer\n");
    _exit(125);
  }
  lock();
  const int index = find_reserved();
  unlock();
  if (index == kNobody) {
    fprintf(stderr, "revati: the domain has no more than %d threads\n", kSlots);
    _exit(125);
  }
  domain = segment;
  claim(&self, index);
}

namespace {

__attribute__((constructor(101))) void join_at_start() { join(); }
__attribute__((destructor(101))) void exit_orderly() { leave_process(); }

// ---- forks ----

struct Child {
  int index = kNobody;
  uint32_t generation = 0;  // the child may have been and gone before we hear its process id
  Thread *parent = nullptr;
  // A slot for the child, before it exists: time cannot pass it by.
  Child() {
    parent = any_thread();
    if (!parent || segment->break_reserve) return;
    if (Thread *thread = active()) sync(thread);
    Guard guard;
    lock();
    index = reserve(virtual_now(), 0, process_id);
    if (index != kNobody) generation = segment->slots[index].generation;
    unlock();
  }
  void born(pid_t pid) {
    if (index == kNobody) return;
    Guard guard;
    lock();
    Slot &slot = segment->slots[index];
    if (slot.generation != generation) {
    } else if (pid <= 0) {
      if (!slot.claimed) release(index);
    } else if (slot.pid == 0 && !slot.claimed) {
      slot.pid = pid;
    }
    unlock();
  }
};

// Around fork(), inside the handlers of other libraries: those find the child in its own place already.
__thread Child *coming = nullptr;

void before_fork() {
  if (segment) coming = new Child;
}

void after_fork_in_child() {
  if (!segment) return;
  const int index = coming ? coming->index : kNobody;
  process_id = getpid();
  self = Thread{};
  coming = nullptr;
  if (domain && index != kNobody) claim(&self, index);  // else at its first hook
}

__attribute__((constructor(101))) void follow_forks() { pthread_atfork(before_fork, nullptr, after_fork_in_child); }

pid_t fork_member() {
  const pid_t pid = REAL(fork)();
  if (pid != 0 && coming) {
    const int error = errno;
    coming->born(pid);
    delete coming;
    coming = nullptr;
    errno = error;
  }
  return pid;
}

// The program that replaces this one finds its slot, and the token, by its process id.
template <typename Exec>
int exec_member(Exec exec) {
  Thread *thread = segment && !self.gone && self.slot ? &self : nullptr;
  if (!thread) return exec();
  Guard guard;
  sent(thread);
  lock();
  self.base = local_now();
  thread->slot->time = self.base;
  thread->slot->claimed = 0;
  if (segment->break_reserve) release(thread->index);
  thread->slot->since_real_ns = real_now_ns();
  unlock();
  const int result = exec();
  const int error = errno;
  lock();
  thread->slot->claimed = 1;
  unlock();
  errno = error;
  return result;
}

std::vector<char *> collect(const char *first, va_list list) {
  std::vector<char *> arguments{const_cast<char *>(first)};
  while (arguments.back()) arguments.push_back(va_arg(list, char *));
  return arguments;
}

// ---- waits for children ----

// `call(options)` like waitpid: > 0 a child, 0 none yet, < 0 error.
template <typename Call>
pid_t wait_for_child(int options, const char *name, uint64_t object, Call call) {
  Thread *thread = active();
  if (!thread) return call(options);
  sync(thread);
  Guard guard;
  pid_t pid = call(options | WNOHANG);
  if (pid != 0) {
    progress(thread);
    observed(thread);
    return pid;
  }
  if (options & WNOHANG) {
    spin(thread, name);
    return 0;
  }
  if (!block(thread, Kind::kKernel, kNever, name, object)) return fail(EINTR);
  pid = call(options);
  const int error = errno;
  arrive(thread);
  progress(thread);
  errno = error;
  return pid;
}

// Who gets a signal is in flight until it is seen asleep, and its end, if it ends, is no accident.
void signal_slots(pid_t pid, int signal) {
  if (!segment || signal == 0) return;
  const bool ends = signal != SIGCONT && signal != SIGSTOP && signal != SIGCHLD;
  Guard guard;
  const auto gets_it = [&](const Slot &slot) {
    if (slot.state == State::kFree || slot.pid <= 1) return false;
    return slot.pid == pid || (pid <= 0 && getpgid(slot.pid) == (pid ? -pid : getpgrp()));
  };
  for (int i = 0; i < segment->high; ++i)
    if (gets_it(segment->slots[i])) until_asleep(i);  // a handler ends a wait only once it has begun
  settle_edges();
  lock();
  for (int i = 0; i < segment->high; ++i) {
    Slot &slot = segment->slots[i];
    if (!gets_it(slot)) continue;
    slot.signalled = 1;
    if (ends && slot.pid != process_id) slot.exit_expected = 1;
  }
  unlock();
}

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

REVATI_API pid_t fork() noexcept { return fork_member(); }
// A child that borrows our memory cannot have a thread of its own: vfork may be a fork.
REVATI_API pid_t vfork() noexcept { return fork_member(); }

REVATI_API int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                           const posix_spawnattr_t *attributes, char *const arguments[], char *const environment[]) {
  if (!segment) return REAL(posix_spawn)(pid, path, actions, attributes, arguments, environment);
  Child child;
  Guard guard;
  pid_t made = -1;
  const int error = REAL(posix_spawn)(&made, path, actions, attributes, arguments, environment);
  child.born(error ? -1 : made);
  if (pid && !error) *pid = made;
  return error;
}

REVATI_API int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                            const posix_spawnattr_t *attributes, char *const arguments[], char *const environment[]) {
  if (!segment) return REAL(posix_spawnp)(pid, file, actions, attributes, arguments, environment);
  Child child;
  Guard guard;
  pid_t made = -1;
  const int error = REAL(posix_spawnp)(&made, file, actions, attributes, arguments, environment);
  child.born(error ? -1 : made);
  if (pid && !error) *pid = made;
  return error;
}

REVATI_API FILE *popen(const char *command, const char *mode) {
  if (!segment) return REAL(popen)(command, mode);
  Child child;
  Guard guard;
  FILE *file = REAL(popen)(command, mode);
  if (!file) child.born(-1);
  return file;
}

REVATI_API int pclose(FILE *file) {
  Thread *thread = active();
  if (!thread) return REAL(pclose)(file);
  sync(thread);
  Guard guard;
  sent(thread);
  if (!block(thread, Kind::kKernel, kNever, "pclose", 0)) return fail(EINTR);
  const int result = REAL(pclose)(file);
  arrive(thread);
  return result;
}

REVATI_API int system(const char *command) {
  Thread *thread = active();
  if (!thread || !command) return REAL(system)(command);
  Child child;
  Guard guard;
  if (!block(thread, Kind::kKernel, kNever, "system", 0)) return fail(EINTR);
  const int result = REAL(system)(command);
  arrive(thread);
  return result;
}

REVATI_API int execve(const char *path, char *const arguments[], char *const environment[]) noexcept {
  return exec_member([&] { return REAL(execve)(path, arguments, environment); });
}
REVATI_API int execv(const char *path, char *const arguments[]) noexcept {
  return exec_member([&] { return REAL(execve)(path, arguments, environ); });
}
REVATI_API int execvp(const char *file, char *const arguments[]) noexcept {
  return exec_member([&] { return REAL(execvp)(file, arguments); });
}
REVATI_API int execvpe(const char *file, char *const arguments[], char *const environment[]) noexcept {
  return exec_member([&] { return REAL(execvpe)(file, arguments, environment); });
}
REVATI_API int fexecve(int file, char *const arguments[], char *const environment[]) noexcept {
  return exec_member([&] { return REAL(fexecve)(file, arguments, environment); });
}
REVATI_API int execl(const char *path, const char *first, ...) noexcept {
  va_list list;
  va_start(list, first);
  const auto arguments = collect(first, list);
  va_end(list);
  return execv(path, arguments.data());
}
REVATI_API int execlp(const char *file, const char *first, ...) noexcept {
  va_list list;
  va_start(list, first);
  const auto arguments = collect(first, list);
  va_end(list);
  return execvp(file, arguments.data());
}
REVATI_API int execle(const char *path, const char *first, ...) noexcept {
  va_list list;
  va_start(list, first);
  const auto arguments = collect(first, list);
  char *const *environment = va_arg(list, char *const *);
  va_end(list);
  return execve(path, arguments.data(), environment);
}

REVATI_API pid_t waitpid(pid_t pid, int *status, int options) {
  return wait_for_child(options, "waitpid", static_cast<uint64_t>(pid),
                        [&](int how) { return REAL(waitpid)(pid, status, how); });
}
REVATI_API pid_t wait(int *status) { return waitpid(-1, status, 0); }
REVATI_API pid_t wait4(pid_t pid, int *status, int options, rusage *usage) noexcept {
  return wait_for_child(options, "wait4", static_cast<uint64_t>(pid),
                        [&](int how) { return REAL(wait4)(pid, status, how, usage); });
}
REVATI_API pid_t wait3(int *status, int options, rusage *usage) noexcept { return wait4(-1, status, options, usage); }
REVATI_API int waitid(idtype_t type, id_t id, siginfo_t *information, int options) {
  siginfo_t local;
  siginfo_t *found = information ? information : &local;
  const pid_t pid = wait_for_child(options, "waitid", id, [&](int how) -> pid_t {
    found->si_pid = 0;
    const int result = REAL(waitid)(type, id, found, how);
    return result < 0 ? result : found->si_pid;
  });
  return pid < 0 ? -1 : 0;
}

REVATI_API int kill(pid_t pid, int signal) noexcept {
  if (Thread *thread = active()) sync(thread);
  if (segment) sent(&self);
  signal_slots(pid, signal);
  const int result = REAL(kill)(pid, signal);
  if (segment) segment->in_doubt = 2;
  return result;
}
REVATI_API int pthread_kill(pthread_t handle, int signal) noexcept {
  if (handle != pthread_self()) {
    if (Thread *thread = active()) sync(thread);
    if (segment) sent(&self);
    signal_slots(process_id, signal);
  }
  return REAL(pthread_kill)(handle, signal);
}
REVATI_API int killpg(pid_t group, int signal) noexcept { return kill(-group, signal); }

REVATI_API void _exit(int status) {
  if (Thread *thread = active()) sync(thread);
  leave_process();
  raw(SYS_exit_group, status);
  __builtin_unreachable();
}
REVATI_API void _Exit(int status) noexcept { _exit(status); }
