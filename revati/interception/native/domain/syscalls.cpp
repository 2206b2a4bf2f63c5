// libc's syscall(): futexes of Rust and C++20 programs, and direct calls of what we interpose by name.
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "clocks.h"
#include "queues.h"

namespace revati::domain {
namespace {

ns_t futex_deadline(int operation, const timespec *timeout) {
  if (!timeout) return kNever;
  if ((operation & FUTEX_CMD_MASK) == FUTEX_WAIT) return after(to_ns(*timeout));  // relative
  return deadline_of(operation & FUTEX_CLOCK_REALTIME ? CLOCK_REALTIME : CLOCK_MONOTONIC, timeout);
}

// A futex that other processes share has no name that we know: the kernel keeps its waiters.
long wait_for_shared(Thread *thread, uint32_t *word, uint32_t value, ns_t deadline) {
  futex_waitv both[2] = {};
  both[0] = {value, reinterpret_cast<uint64_t>(word), FUTEX_32, 0};
  both[1] = {0, reinterpret_cast<uint64_t>(&thread->slot->word), FUTEX_32, 0};
  sync(thread);
  Guard guard;
  if (!block(thread, Kind::kEdge, deadline, "futex", reinterpret_cast<uint64_t>(word))) return -ETIMEDOUT;
  const long result = raw(SYS_futex_waitv, as_long(both), 2, 0, 0, 0);
  if (arrive(thread)) return -ETIMEDOUT;
  return result > 0 ? 0 : result;
}

void effect_on_edges() {
  if (Thread *thread = active()) sync(thread);
  Guard guard;
  settle_edges();
  sent(&self);
}

long wait_on_futex(uint32_t *word, int operation, uint32_t value, const timespec *timeout) {
  const ns_t deadline = futex_deadline(operation, timeout);
  if (!(operation & FUTEX_PRIVATE_FLAG))
    if (Thread *thread = active()) return wait_for_shared(thread, word, value, deadline);
  Thread *thread = queue_thread();
  if (!thread) {
    pause_briefly();
    return -EINTR;
  }
  enqueue(thread, private_queue(word), "futex", word);
  if (__atomic_load_n(word, __ATOMIC_SEQ_CST) != value) {
    cancel(thread);
    return -EAGAIN;
  }
  progress(thread);
  switch (wait(thread, Kind::kQueue, deadline, "futex", Handlers::kInterrupt)) {
    case Outcome::kTimedOut: return -ETIMEDOUT;
    case Outcome::kInterrupted: return -EINTR;
    default: return 0;
  }
}

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

REVATI_API long syscall(long number, ...) noexcept {
  va_list list;
  va_start(list, number);
  const long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
  const long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
  va_end(list);
  if (!segment) return checked(raw(number, a, b, c, d, e, f));
  switch (number) {
    case SYS_futex: {
      const int command = static_cast<int>(b) & FUTEX_CMD_MASK;
      auto *word = reinterpret_cast<uint32_t *>(a);
      if (command == FUTEX_WAIT || command == FUTEX_WAIT_BITSET)
        return checked(wait_on_futex(word, static_cast<int>(b), static_cast<uint32_t>(c), reinterpret_cast<timespec *>(d)));
      if (command == FUTEX_WAKE || command == FUTEX_WAKE_BITSET) {
        int woken = 0;
        if (b & FUTEX_PRIVATE_FLAG) woken = wake(private_queue(word), static_cast<int>(c));
        else effect_on_edges();
        if (woken < c) {
          const long more = raw(number, a, b, c - woken, d, e, f);
          if (more < 0) return checked(more);
          woken += static_cast<int>(more);
        }
        return woken;
      }
      break;
    }
    case SYS_clock_gettime:
      if (!domain || !is_virtual(static_cast<clockid_t>(a))) break;  // librevati.so's clock asks for real ones this way
      return clock_gettime(static_cast<clockid_t>(a), reinterpret_cast<timespec *>(b));
    case SYS_nanosleep: return nanosleep(reinterpret_cast<timespec *>(a), reinterpret_cast<timespec *>(b));
    case SYS_clock_nanosleep: {
      const int error = clock_nanosleep(static_cast<clockid_t>(a), static_cast<int>(b), reinterpret_cast<timespec *>(c),
                                        reinterpret_cast<timespec *>(d));
      return error ? fail(error) : 0;
    }
    case SYS_epoll_pwait:
      return epoll_pwait(static_cast<int>(a), reinterpret_cast<epoll_event *>(b), static_cast<int>(c),
                         static_cast<int>(d), reinterpret_cast<sigset_t *>(e));
    case SYS_epoll_pwait2:
      return epoll_pwait2(static_cast<int>(a), reinterpret_cast<epoll_event *>(b), static_cast<int>(c),
                          reinterpret_cast<timespec *>(d), reinterpret_cast<sigset_t *>(e));
    case SYS_poll: return poll(reinterpret_cast<pollfd *>(a), static_cast<nfds_t>(b), static_cast<int>(c));
    case SYS_read: return read(static_cast<int>(a), reinterpret_cast<void *>(b), static_cast<size_t>(c));
    case SYS_write: return write(static_cast<int>(a), reinterpret_cast<void *>(b), static_cast<size_t>(c));
    case SYS_exit_group: _exit(static_cast<int>(a));
    default: break;
  }
  return checked(raw(number, a, b, c, d, e, f));
}
