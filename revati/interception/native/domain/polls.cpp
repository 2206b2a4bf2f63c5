// Waits for descriptors: poll, select and epoll.
#include "polls.h"

#include <dlfcn.h>
#include <sys/epoll.h>
#include <sys/select.h>

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
  thread->slot->unstretched = deadline;
  return deadline - period + kIdlePeriod;
}

// Who changes what an idle loop waits for waits for its next look, as gloo's do.
void look_soon(int epoll) {
  Guard guard;
  lock();
  for (int i = 0; i < segment->high; ++i) {
    const Slot &slot = segment->slots[i];
    if (slot.pid == process_id && slot.object == static_cast<uint64_t>(epoll)) unstretch(i);
  }
  unlock();
}

// An event loop whose handler cannot have a lock is told of the same event again and again (gloo's); whoever holds
// the lock may be ahead in time.
constexpr int kUnheeded = 16;

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

}  // namespace

void unstretch(int index) {
  Slot &slot = segment->slots[index];
  if (slot.state != State::kBlocked || !slot.unstretched) return;
  slot.deadline = std::max(slot.unstretched, local_now());
  set_key(index, slot.deadline);
}

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

namespace {

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

REVATI_API int epoll_ctl(int file, int operation, int target, epoll_event *event) noexcept {
  const int result = REAL(epoll_ctl)(file, operation, target, event);
  if (result == 0 && active()) look_soon(file);
  return result;
}
REVATI_API int epoll_wait(int file, epoll_event *events, int count, int timeout_ms) {
  Thread *thread = active();
  if (!thread) return REAL(epoll_wait)(file, events, count, timeout_ms);
  const ns_t deadline = stretched(thread, deadline_in_ms(timeout_ms), __builtin_return_address(0));
  const int result = epoll_until(thread, file, events, count, deadline, nullptr);
  thread->slot->unstretched = 0;
  return result;
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
