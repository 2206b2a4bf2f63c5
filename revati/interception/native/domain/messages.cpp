// Messages through descriptors, and what else others see of one.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>

#include <cstring>

#include "clocks.h"
#include "inbox.h"
#include "polls.h"

namespace revati::domain {
namespace {

bool ready(int file, short events) {
  pollfd one{file, events, 0};
  timespec timeout{};
  return raw(SYS_ppoll, as_long(&one), 1, as_long(&timeout), 0, 8) != 0;
}

bool nonblocking(int file, int flags) {
  return flags & MSG_DONTWAIT || raw(SYS_fcntl, file, F_GETFL) & O_NONBLOCK;
}

// Who lost the token in a long computation, such as a program's imports, goes on beside whoever has it now: what it
// does with ordinary files is its own.
bool goes_on(int file) {
  struct stat about;
  if (!computes_on() || raw(SYS_fstat, file, as_long(&about)) != 0 || !S_ISREG(about.st_mode)) return false;
  progress(&self);
  return true;
}

// A receive: the system call itself waits, without the token.
template <typename Call>
ssize_t receive(int file, int flags, const char *name, Call call) {
  if (goes_on(file)) return call();
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
  if (goes_on(file)) return call();
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
  if (goes_on(file)) return REAL(close)(file);
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
