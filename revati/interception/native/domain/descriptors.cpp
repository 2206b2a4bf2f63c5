// Waits for descriptors, and messages through them.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>

#include <cstring>

#include "clocks.h"
#include "inbox.h"

namespace revati::domain {
namespace {

// The wake signal, blocked outside the waiting system call itself.
class WaitMask {
 public:
  explicit WaitMask(const sigset_t *wanted) {
    sigset_t wake;
    sigemptyset(&wake);
    sigaddset(&wake, kWakeSignal);
    raw(SYS_rt_sigprocmask, SIG_BLOCK, as_long(&wake), as_long(&before_), 8);
    during_ = wanted ? *wanted : before_;
    sigdelset(&during_, kWakeSignal);
  }
  ~WaitMask() { raw(SYS_rt_sigprocmask, SIG_SETMASK, as_long(&before_), 0, 8); }
  const sigset_t *during() const { return &during_; }

 private:
  sigset_t before_{}, during_{};
};

// Loops of some libraries wait for descriptors again and again in vain, always for the same short time, and do
// nothing else that a hook sees: how often they wake, nobody can tell.  gloo's do so every 10 ms.
constexpr int kIdleWaits = 20;
constexpr ns_t kIdlePeriod = 1000000000;

bool idles(const void *caller) {
  static thread_local const void *known = nullptr;
  static thread_local bool listed = false;
  if (caller != known) {
    Dl_info information;
    known = caller;
    listed = false;
    if (dladdr(caller, &information) && information.dli_fname) {
      const char *slash = std::strrchr(information.dli_fname, '/');
      listed = matches(segment->idle_libraries, slash ? slash + 1 : information.dli_fname);
    }
  }
  return listed;
}

ns_t stretched(Thread *thread, ns_t deadline, const void *caller) {
  const ns_t period = deadline - local_now();
  const bool same = period > 0 && period == thread->idle_period;
  thread->idle_period = period;
  if (!same) thread->idle_before = 0;
  if (thread->idle_before <= kIdleWaits || period >= kIdlePeriod || !idles(caller)) return deadline;
  return deadline - period + kIdlePeriod;
}

// An event loop whose handler cannot have a lock is told of the same event again and again (gloo's); whoever holds
// the lock may be ahead in time.
constexpr int kUnheeded = 16;

// Sleeps until the domain has something for the thread.  `expect(expectation)` adds what; false: it can't be.
template <typename Expect>
bool await_message(Thread *thread, ns_t deadline, const char *name, uint64_t object, Handlers handlers, Expect expect,
                   Outcome &outcome) {
  Expectation expectation(thread, name, object);
  if (!expect(expectation)) return false;
  do {
    self.signalled = false;
    outcome = wait(thread, Kind::kMessage, deadline, name, handlers);
  } while (outcome == Outcome::kInterrupted && self.signalled && domain);  // a wake signal that came too late
  return true;
}

// `call(wait, mask)`: the system call without (wait = false) or with an unlimited wait, as -errno or a count.
template <typename Expect, typename Call>
int wait_for_events(Thread *thread, ns_t deadline, const sigset_t *mask, const char *name, uint64_t object, Expect expect,
                    Call call) {
  const int idle = thread->idle_before, unheeded = thread->unheeded;
  if (unheeded >= kUnheeded) spin(thread, name);
  sync(thread);
  Guard guard;
  for (;;) {
    // With the caller's mask, so that its pending signals interrupt as they would.
    long count = call(false, mask);
    if (count != 0) {
      if (unheeded < kUnheeded) progress(thread);
      if (count > 0) thread->unheeded = unheeded + 1;
      observed(thread);
      return static_cast<int>(checked(count));
    }
    if (deadline <= local_now()) {
      spin(thread, name);
      return 0;
    }
    // The caller's mask can be had only in the system call itself.
    Outcome outcome;
    if (!mask && await_message(thread, deadline, name, object, Handlers::kInterrupt, expect, outcome)) {
      if (!domain) return static_cast<int>(checked(call(deadline >= kNever, mask)));
      if (outcome == Outcome::kTimedOut) break;
      progress(thread);
      count = call(false, mask);
      if (count == 0 && outcome == Outcome::kInterrupted) return fail(EINTR);
      if (count == 0) continue;  // somebody else took it
      observed(thread);
      return static_cast<int>(checked(count));
    }
    self.signalled = false;
    bool timed_out;
    if (deadline >= kNever) {
      block(thread, Kind::kKernel, deadline, name, object);
      count = call(true, mask);
      timed_out = arrive(thread);
    } else {
      WaitMask masks(mask);
      if (!block(thread, Kind::kSignalled, deadline, name, object)) break;
      count = call(true, masks.during());
      timed_out = arrive(thread);
    }
    if (timed_out) {
      if (count <= 0) break;  // an event that came with the deadline is delivered
    }
    progress(thread);
    if (count == -EINTR && self.signalled && domain) continue;  // a wake signal that came too late
    return static_cast<int>(checked(count));
  }
  progress(thread);
  // Whoever runs at the same time may have sent something meanwhile.
  const long count = call(false, nullptr);
  thread->idle_waits = count == 0 ? idle + 1 : 0;
  return static_cast<int>(checked(count));
}

ns_t deadline_in_ms(int ms) { return ms < 0 ? kNever : after(ms * 1000000LL); }
ns_t deadline_in(const timespec *relative) { return relative ? after(to_ns(*relative)) : kNever; }

constexpr timespec kZero{0, 0};

int poll_until(Thread *thread, pollfd *files, nfds_t count, ns_t deadline, const sigset_t *mask) {
  const auto expect = [&](Expectation &expectation) {
    if (count > kMostExpected) return false;
    for (nfds_t i = 0; i < count; ++i)
      if (files[i].fd >= 0 && !expectation.add(files[i].fd, static_cast<uint16_t>(files[i].events))) return false;
    return true;
  };
  return wait_for_events(thread, deadline, mask, "poll", count ? files[0].fd : 0, expect,
                         [&](bool waits, const sigset_t *during) {
                           timespec timeout = kZero;
                           return raw(SYS_ppoll, as_long(files), as_long(count), as_long(waits ? nullptr : &timeout),
                                      as_long(during), 8);
                         });
}

int epoll_until(Thread *thread, int file, epoll_event *events, int count, ns_t deadline, const sigset_t *mask) {
  const auto expect = [&](Expectation &expectation) { return expectation.add(file, POLLIN); };
  return wait_for_events(thread, deadline, mask, "epoll_wait", file, expect, [&](bool waits, const sigset_t *during) {
    return raw(SYS_epoll_pwait, file, as_long(events), count, waits ? -1 : 0, as_long(during), 8);
  });
}

int select_until(Thread *thread, int count, fd_set *in, fd_set *out, fd_set *err, ns_t deadline, const sigset_t *mask) {
  fd_set *sets[3] = {in, out, err};
  fd_set copies[3];
  for (int i = 0; i < 3; ++i)
    if (sets[i]) std::memcpy(&copies[i], sets[i], (count + 63) / 64 * 8);
  const auto restore = [&] {  // the kernel empties them when it times out or is interrupted
    for (int i = 0; i < 3; ++i)
      if (sets[i]) std::memcpy(sets[i], &copies[i], (count + 63) / 64 * 8);
  };
  const auto expect = [&](Expectation &expectation) {
    for (int file = 0; file < count; ++file) {
      const auto in_set = [&](int i) { return sets[i] && FD_ISSET(file, &copies[i]); };
      const uint32_t events = (in_set(0) ? POLLIN : 0) | (in_set(1) ? POLLOUT : 0) | (in_set(2) ? POLLPRI : 0);
      if (events && !expectation.add(file, events)) return false;
    }
    return true;
  };
  return wait_for_events(thread, deadline, mask, "select", 0, expect, [&](bool waits, const sigset_t *during) {
    restore();
    timespec timeout = kZero;
    const struct { const sigset_t *mask; size_t bytes; } argument{during, 8};
    return raw(SYS_pselect6, count, as_long(in), as_long(out), as_long(err), as_long(waits ? nullptr : &timeout),
               as_long(&argument));
  });
}

bool ready(int file, short events) {
  pollfd one{file, events, 0};
  timespec timeout = kZero;
  return raw(SYS_ppoll, as_long(&one), 1, as_long(&timeout), 0, 8) != 0;
}

bool nonblocking(int file, int flags) {
  return flags & MSG_DONTWAIT || raw(SYS_fcntl, file, F_GETFL) & O_NONBLOCK;
}

// A receive: the system call itself waits, without the token.
template <typename Call>
ssize_t receive(int file, int flags, const char *name, Call call) {
  Thread *thread = active();
  if (!thread) return call();
  sync(thread);
  Guard guard;
  const auto take = [&] {
    const ssize_t result = call();
    const int error = errno;
    if (result >= 0) progress(thread);
    observed(thread);
    errno = error;
    return result;
  };
  if (ready(file, POLLIN)) return take();
  if (nonblocking(file, flags)) {
    const ssize_t result = call();
    const int error = errno;
    spin(thread, name);
    errno = error;
    return result;
  }
  timeval timeout{};
  socklen_t length = sizeof timeout;
  raw(SYS_getsockopt, file, SOL_SOCKET, SO_RCVTIMEO, as_long(&timeout), as_long(&length));
  if (timeout.tv_sec || timeout.tv_usec) {
    pollfd one{file, POLLIN, 0};
    const int count = poll_until(thread, &one, 1, after(timeout.tv_sec * 1000000000LL + timeout.tv_usec * 1000LL), nullptr);
    if (count <= 0) return fail(count ? errno : EAGAIN);
    return call();
  }
  const auto expect = [&](Expectation &expectation) { return expectation.add(file, POLLIN); };
  for (Outcome outcome; await_message(thread, kNever, name, file, Handlers::kRestart, expect, outcome);) {
    if (!domain) return call();
    if (outcome == Outcome::kInterrupted) return fail(EINTR);
    if (ready(file, POLLIN)) return take();  // else somebody else took it
  }
  if (!block(thread, Kind::kKernel, kNever, name, file)) return fail(EINTR);
  const ssize_t result = call();
  const int error = errno;
  arrive(thread);
  progress(thread);
  errno = error;
  return result;
}

// A send: done in its turn; it waits, without the token, only where the receiver is full.
template <typename Call>
ssize_t send_out(int file, int flags, const char *name, Call call) {
  Thread *thread = active();
  if (!thread) {
    if (!domain) return call();
    sent(&self);
    const ssize_t result = call();
    segment->in_doubt = 2;
    return result;
  }
  sync(thread);
  Guard guard;
  sent(thread);
  progress(thread);
  if (ready(file, POLLOUT) || nonblocking(file, flags)) return call();
  if (!block(thread, Kind::kKernel, kNever, name, file)) return fail(EINTR);
  const ssize_t result = call();
  const int error = errno;
  arrive(thread);
  errno = error;
  return result;
}

// Something that others see as readiness or an end of file, and that never waits.
template <typename Call>
auto effect(Call call) {
  if (domain) {
    if (Thread *thread = active()) sync(thread);
    sent(&self);
  }
  return call();
}

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

REVATI_API int poll(pollfd *files, nfds_t count, int timeout_ms) {
  Thread *thread = active();
  if (!thread) return REAL(poll)(files, count, timeout_ms);
  return poll_until(thread, files, count, deadline_in_ms(timeout_ms), nullptr);
}
REVATI_API int ppoll(pollfd *files, nfds_t count, const timespec *timeout, const sigset_t *mask) {
  Thread *thread = active();
  if (!thread) return REAL(ppoll)(files, count, timeout, mask);
  return poll_until(thread, files, count, deadline_in(timeout), mask);
}
REVATI_API int __poll_chk(pollfd *files, nfds_t count, int timeout_ms, size_t) { return poll(files, count, timeout_ms); }
REVATI_API int __ppoll_chk(pollfd *files, nfds_t count, const timespec *timeout, const sigset_t *mask, size_t) {
  return ppoll(files, count, timeout, mask);
}

REVATI_API int select(int count, fd_set *in, fd_set *out, fd_set *err, timeval *timeout) {
  Thread *thread = active();
  if (!thread) return REAL(select)(count, in, out, err, timeout);
  const ns_t deadline = timeout ? after(timeout->tv_sec * 1000000000LL + timeout->tv_usec * 1000LL) : kNever;
  const int result = select_until(thread, count, in, out, err, deadline, nullptr);
  if (timeout) {  // Linux tells how much was left
    const ns_t left = std::max<ns_t>(0, deadline - virtual_now());
    *timeout = {left / 1000000000LL, left % 1000000000LL / 1000};
  }
  return result;
}
REVATI_API int pselect(int count, fd_set *in, fd_set *out, fd_set *err, const timespec *timeout, const sigset_t *mask) {
  Thread *thread = active();
  if (!thread) return REAL(pselect)(count, in, out, err, timeout, mask);
  return select_until(thread, count, in, out, err, deadline_in(timeout), mask);
}

REVATI_API int epoll_wait(int file, epoll_event *events, int count, int timeout_ms) {
  Thread *thread = active();
  if (!thread) return REAL(epoll_wait)(file, events, count, timeout_ms);
  const ns_t deadline = stretched(thread, deadline_in_ms(timeout_ms), __builtin_return_address(0));
  return epoll_until(thread, file, events, count, deadline, nullptr);
}
REVATI_API int epoll_pwait(int file, epoll_event *events, int count, int timeout_ms, const sigset_t *mask) {
  Thread *thread = active();
  if (!thread) return REAL(epoll_pwait)(file, events, count, timeout_ms, mask);
  return epoll_until(thread, file, events, count, deadline_in_ms(timeout_ms), mask);
}
REVATI_API int epoll_pwait2(int file, epoll_event *events, int count, const timespec *timeout, const sigset_t *mask) {
  Thread *thread = active();
  if (!thread) return REAL(epoll_pwait2)(file, events, count, timeout, mask);
  return epoll_until(thread, file, events, count, deadline_in(timeout), mask);
}

REVATI_API ssize_t read(int file, void *buffer, size_t bytes) {
  return receive(file, 0, "read", [&] { return REAL(read)(file, buffer, bytes); });
}
REVATI_API ssize_t __read_chk(int file, void *buffer, size_t bytes, size_t) { return read(file, buffer, bytes); }
REVATI_API ssize_t readv(int file, const iovec *parts, int count) {
  return receive(file, 0, "readv", [&] { return REAL(readv)(file, parts, count); });
}
REVATI_API ssize_t recv(int file, void *buffer, size_t bytes, int flags) {
  return receive(file, flags, "recv", [&] { return REAL(recv)(file, buffer, bytes, flags); });
}
REVATI_API ssize_t __recv_chk(int file, void *buffer, size_t bytes, size_t, int flags) {
  return recv(file, buffer, bytes, flags);
}
REVATI_API ssize_t recvfrom(int file, void *buffer, size_t bytes, int flags, sockaddr *from, socklen_t *length) {
  return receive(file, flags, "recvfrom", [&] { return REAL(recvfrom)(file, buffer, bytes, flags, from, length); });
}
REVATI_API ssize_t recvmsg(int file, msghdr *message, int flags) {
  return receive(file, flags, "recvmsg", [&] { return REAL(recvmsg)(file, message, flags); });
}
REVATI_API int recvmmsg(int file, mmsghdr *messages, unsigned count, int flags, timespec *timeout) {
  return static_cast<int>(
      receive(file, flags, "recvmmsg", [&]() -> ssize_t { return REAL(recvmmsg)(file, messages, count, flags, timeout); }));
}
REVATI_API int accept(int file, sockaddr *address, socklen_t *length) {
  return static_cast<int>(receive(file, 0, "accept", [&]() -> ssize_t { return REAL(accept)(file, address, length); }));
}
REVATI_API int accept4(int file, sockaddr *address, socklen_t *length, int flags) {
  return static_cast<int>(
      receive(file, 0, "accept4", [&]() -> ssize_t { return REAL(accept4)(file, address, length, flags); }));
}

REVATI_API ssize_t write(int file, const void *buffer, size_t bytes) {
  return send_out(file, 0, "write", [&] { return REAL(write)(file, buffer, bytes); });
}
REVATI_API int eventfd_read(int file, eventfd_t *value) {
  return read(file, value, sizeof *value) == sizeof *value ? 0 : -1;
}
REVATI_API int eventfd_write(int file, eventfd_t value) {
  return write(file, &value, sizeof value) == sizeof value ? 0 : -1;
}
REVATI_API ssize_t writev(int file, const iovec *parts, int count) {
  return send_out(file, 0, "writev", [&] { return REAL(writev)(file, parts, count); });
}
REVATI_API ssize_t send(int file, const void *buffer, size_t bytes, int flags) {
  return send_out(file, flags, "send", [&] { return REAL(send)(file, buffer, bytes, flags); });
}
REVATI_API ssize_t sendto(int file, const void *buffer, size_t bytes, int flags, const sockaddr *to, socklen_t length) {
  return send_out(file, flags, "sendto", [&] { return REAL(sendto)(file, buffer, bytes, flags, to, length); });
}
REVATI_API ssize_t sendmsg(int file, const msghdr *message, int flags) {
  return send_out(file, flags, "sendmsg", [&] { return REAL(sendmsg)(file, message, flags); });
}
REVATI_API int sendmmsg(int file, mmsghdr *messages, unsigned count, int flags) {
  return static_cast<int>(
      send_out(file, flags, "sendmmsg", [&]() -> ssize_t { return REAL(sendmmsg)(file, messages, count, flags); }));
}
REVATI_API ssize_t sendfile(int to, int from, off_t *offset, size_t bytes) noexcept {
  return send_out(to, 0, "sendfile", [&] { return REAL(sendfile)(to, from, offset, bytes); });
}

// Programs that close everything leave the domain's own descriptor alone.
REVATI_API int close(int file) {
  if (domain && keeps_inbox(file)) return fail(EBADF);
  return effect([&] { return REAL(close)(file); });
}
REVATI_API int close_range(unsigned first, unsigned last, int flags) noexcept {
  const unsigned kept = static_cast<unsigned>(inbox_descriptor());
  return effect([&] {
    if (!domain || kept < first || kept > last) return REAL(close_range)(first, last, flags);
    int result = 0;
    if (first < kept) result = REAL(close_range)(first, kept - 1, flags);
    if (kept < last && result == 0) result = REAL(close_range)(kept + 1, last, flags);
    return result;
  });
}
REVATI_API void closefrom(int first) noexcept { close_range(static_cast<unsigned>(std::max(first, 0)), ~0U, 0); }
REVATI_API int shutdown(int file, int how) noexcept {
  return effect([&] { return REAL(shutdown)(file, how); });
}
REVATI_API int dup2(int from, int to) noexcept {
  return effect([&] { return REAL(dup2)(from, to); });
}
REVATI_API int dup3(int from, int to, int flags) noexcept {
  return effect([&] { return REAL(dup3)(from, to, flags); });
}

// A delayed segment would be in flight where nobody can see it.
REVATI_API int socket(int family, int type, int protocol) noexcept {
  const int file = REAL(socket)(family, type, protocol);
  if (domain && file >= 0 && (family == AF_INET || family == AF_INET6) && (type & 0xf) == SOCK_STREAM) {
    const int on = 1;
    raw(SYS_setsockopt, file, IPPROTO_TCP, TCP_NODELAY, as_long(&on), sizeof on);
  }
  return file;
}

// With the token even if it waits: what the other side sees must not come while we count as waiting already.
REVATI_API int connect(int file, const sockaddr *address, socklen_t length) {
  return effect([&] { return REAL(connect)(file, address, length); });
}
