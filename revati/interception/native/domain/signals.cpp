// Waits for signals.
#include <signal.h>
#include <unistd.h>

#include "clocks.h"

namespace revati::domain {
namespace {

// The wake signal is one of those waited for, so that the deadline can end the wait.
int wait_for_signal(const sigset_t *wanted, siginfo_t *information, ns_t deadline) {
  Thread *thread = active();
  if (!thread) {
    if (deadline >= kNever) return REAL(sigwaitinfo)(wanted, information);
    const timespec left = to_timespec(std::max<ns_t>(0, deadline - virtual_now()));
    return REAL(sigtimedwait)(wanted, information, &left);
  }
  sync(thread);
  Guard guard;
  const timespec none{0, 0};
  sigset_t wake, before, all = *wanted;
  sigemptyset(&wake);
  sigaddset(&wake, kWakeSignal);
  sigaddset(&all, kWakeSignal);
  for (;;) {
    const int pending = REAL(sigtimedwait)(wanted, information, &none);
    if (pending > 0 || errno != EAGAIN) return pending;
    if (deadline <= local_now()) {
      spin(thread, "sigtimedwait");
      return fail(EAGAIN);
    }
    raw(SYS_rt_sigprocmask, SIG_BLOCK, as_long(&wake), as_long(&before), 8);
    const Kind kind = deadline >= kNever ? Kind::kKernel : Kind::kSignalled;
    long signal = -EAGAIN;
    bool timed_out = true;
    if (block(thread, kind, deadline, "sigtimedwait", 0)) {
      signal = raw(SYS_rt_sigtimedwait, as_long(&all), as_long(information), 0, 8);
      timed_out = arrive(thread);
    }
    raw(SYS_rt_sigprocmask, SIG_SETMASK, as_long(&before), 0, 8);
    progress(thread);
    if (signal == kWakeSignal || (timed_out && signal < 0)) {
      if (timed_out) return fail(EAGAIN);
      continue;
    }
    return static_cast<int>(checked(signal));
  }
}

template <typename Call>
int wait_for_any(const char *name, Call call) {
  Thread *thread = active();
  if (!thread) return call();
  sync(thread);
  Guard guard;
  block(thread, Kind::kEdge, kNever, name, 0);
  const int result = call();
  const int error = errno;
  arrive(thread);
  errno = error;
  return result;
}

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

REVATI_API int sigtimedwait(const sigset_t *wanted, siginfo_t *information, const timespec *timeout) {
  return wait_for_signal(wanted, information, timeout ? after(to_ns(*timeout)) : kNever);
}
REVATI_API int sigwaitinfo(const sigset_t *wanted, siginfo_t *information) {
  return wait_for_signal(wanted, information, kNever);
}
REVATI_API int sigwait(const sigset_t *wanted, int *signal) {
  int found;
  do {
    found = wait_for_signal(wanted, nullptr, kNever);
  } while (found < 0 && errno == EINTR);
  if (found < 0) return errno;
  *signal = found;
  return 0;
}
REVATI_API int pause() {
  return wait_for_any("pause", [] { return REAL(pause)(); });
}
REVATI_API int sigsuspend(const sigset_t *mask) {
  return wait_for_any("sigsuspend", [&] { return REAL(sigsuspend)(mask); });
}
