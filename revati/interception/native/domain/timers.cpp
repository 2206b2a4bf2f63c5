// Timers that fire without a waiting thread: timerfds, alarm() and setitimer().
//
// A thread per process, born with its first timer, waits for them in virtual time and fires the real ones.
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <map>

#include "clocks.h"
#include "queues.h"

namespace revati::domain {
namespace {

constexpr int kAlarm = -1;  // instead of a descriptor

struct Timer {
  ns_t expiry, interval;
  clockid_t clock;
};
std::map<int, Timer> *timers = nullptr;  // never freed: threads outlive static destructors
std::map<int, clockid_t> *clocks = nullptr;
pthread_mutex_t timers_lock = PTHREAD_MUTEX_INITIALIZER;
std::atomic<uint32_t> changes{0};
int owner = 0;  // the process whose timers they are: a child inherits none

struct Locked {
  Locked() { pthread_mutex_lock(&timers_lock); }
  ~Locked() { pthread_mutex_unlock(&timers_lock); }
};

void fire(int file) {
  sent(&self);
  if (file == kAlarm) {
    settle_edges();
    raw(SYS_kill, process_id, SIGALRM);
  } else {
    const itimerspec now{{0, 0}, {0, 1}};
    raw(SYS_timerfd_settime, file, 0, as_long(&now), 0);
    const timespec moment{0, 50000};  // the kernel's timer is real, too
    raw(SYS_nanosleep, as_long(&moment), 0);
  }
  segment->in_doubt = 2;
}

void *serve(void *) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  pthread_setname_np(pthread_self(), "revati_timers");
  while (domain) {
    ns_t next = kNever;
    const uint32_t seen = changes;
    {
      Locked locked;
      for (auto &[file, timer] : *timers) {
        if (timer.expiry <= virtual_now()) {
          fire(file);
          timer.expiry = timer.interval > 0 ? timer.expiry + timer.interval : kNever;
        }
        next = std::min(next, timer.expiry);
      }
    }
    Thread *thread = active();
    if (!thread) break;
    enqueue(thread, private_queue(&timers), "timers", nullptr);
    if (seen == changes)
      wait(thread, Kind::kQueue, next, "timers");
    else
      cancel(thread);
  }
  return nullptr;
}

void prepare() {  // with the lock held
  if (owner == process_id) return;
  owner = process_id;
  timers = new std::map<int, Timer>;
  clocks = new std::map<int, clockid_t>;
  pthread_t thread;
  if (pthread_create(&thread, nullptr, serve, nullptr) == 0) pthread_detach(thread);
}

ns_t to_ns(const timeval &t) { return t.tv_sec * 1000000000LL + t.tv_usec * 1000LL; }
timeval to_timeval(ns_t ns) { return {ns / 1000000000LL, ns % 1000000000LL / 1000}; }
ns_t left_of(const Timer &timer) { return timer.expiry >= kNever ? 0 : std::max<ns_t>(1000, timer.expiry - virtual_now()); }

// Returns the timer as it was.
Timer set_timer(int file, ns_t expiry, ns_t interval) {
  Timer before{kNever, 0, CLOCK_MONOTONIC};
  {
    Locked locked;
    prepare();
    const auto found = timers->find(file);
    if (found != timers->end()) before = found->second;
    (*timers)[file] = {expiry, interval, CLOCK_MONOTONIC};
  }
  ++changes;
  wake(private_queue(&timers), 1);
  return before;
}

Timer get_timer(int file) {
  Locked locked;
  prepare();
  const auto found = timers->find(file);
  return found == timers->end() ? Timer{kNever, 0, CLOCK_MONOTONIC} : found->second;
}

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

REVATI_API int timerfd_create(int clock, int flags) noexcept {
  const int file = REAL(timerfd_create)(CLOCK_MONOTONIC, flags);
  if (!domain || file < 0) return domain ? file : (raw(SYS_close, file), REAL(timerfd_create)(clock, flags));
  Locked locked;
  prepare();
  timers->erase(file);
  (*clocks)[file] = clock;
  return file;
}

REVATI_API int timerfd_settime(int file, int flags, const itimerspec *wanted, itimerspec *old) noexcept {
  if (!domain) return REAL(timerfd_settime)(file, flags, wanted, old);
  const itimerspec off{};
  if (REAL(timerfd_settime)(file, 0, &off, nullptr) < 0) return -1;  // no timerfd
  clockid_t clock;
  {
    Locked locked;
    prepare();
    const auto found = clocks->find(file);
    clock = found == clocks->end() ? CLOCK_MONOTONIC : found->second;
  }
  const ns_t value = revati::domain::to_ns(wanted->it_value);
  const ns_t expiry = value == 0 ? kNever : flags & TFD_TIMER_ABSTIME ? deadline_of(clock, &wanted->it_value) : after(value);
  const Timer before = set_timer(file, expiry, revati::domain::to_ns(wanted->it_interval));
  if (old) *old = {to_timespec(before.interval), to_timespec(left_of(before))};
  return 0;
}

REVATI_API int timerfd_gettime(int file, itimerspec *value) noexcept {
  if (!domain) return REAL(timerfd_gettime)(file, value);
  const Timer timer = get_timer(file);
  *value = {to_timespec(timer.interval), to_timespec(left_of(timer))};
  return 0;
}

REVATI_API int setitimer(__itimer_which_t which, const itimerval *wanted, itimerval *old) noexcept {
  if (!domain || which != ITIMER_REAL) return REAL(setitimer)(which, wanted, old);
  const ns_t value = to_ns(wanted->it_value);
  const Timer before = set_timer(kAlarm, value == 0 ? kNever : after(value), to_ns(wanted->it_interval));
  if (old) *old = {to_timeval(before.interval), to_timeval(left_of(before))};
  return 0;
}

REVATI_API int getitimer(__itimer_which_t which, itimerval *value) noexcept {
  if (!domain || which != ITIMER_REAL) return REAL(getitimer)(which, value);
  const Timer timer = get_timer(kAlarm);
  *value = {to_timeval(timer.interval), to_timeval(left_of(timer))};
  return 0;
}

REVATI_API unsigned alarm(unsigned seconds) noexcept {
  if (!domain) return REAL(alarm)(seconds);
  const Timer before = set_timer(kAlarm, seconds ? after(seconds * 1000000000LL) : kNever, 0);
  return static_cast<unsigned>((left_of(before) + 999999999) / 1000000000);
}
