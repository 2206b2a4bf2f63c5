// The domain's protocol, as the hooks use it.
#pragma once
#include <string>

#include "shared.h"

namespace revati::domain {

struct Thread {
  int index = kNobody;
  Slot *slot = nullptr;
  ns_t base = 0;             // local time, less the CPU time since cpu_base
  ns_t cpu_base = 0;
  int depth = 0;             // inside a hook (signal handlers may interrupt one): pass everything through
  int phases = 0;            // inside a charged phase: CPU time is not charged
  bool real_time = false;
  bool gone = false;         // after its exit from the domain
  bool signalled = false;    // the wake signal's handler ran
  int to_wake = kNobody;     // granted the token under the lock; woken after it
  int spins = 0, clock_reads = 0;
  ns_t spins_since = 0;
  int unheeded = 0;          // events that it was told of and did nothing about, one after another
  int idle_waits = 0;        // for descriptors, that timed out one after another with no other call between
  int idle_before = 0;       // ... when the current call began
  ns_t idle_period = 0;      // their timeout
};

extern Domain *domain;       // null: this process is in no domain, or its domain has ended
extern Domain *segment;      // likewise, but stays after the end: emulated objects go on working
extern int process_id;
extern bool charge_cpu;
extern __thread Thread self __attribute__((tls_model("initial-exec")));
constexpr int kWakeSignal = 62;
// Real time for which virtual time does not run away from who waits, or runs, where no hook sees it.
constexpr int64_t kUnhookedPatience = 5000000000;

struct Guard {
  Guard() { ++self.depth; }
  ~Guard() { --self.depth; }
};

// The calling thread, if its time is virtual and it is not inside a hook already; it holds the token then.
Thread *active();
Thread *any_thread();        // likewise, real-time threads included
bool computes_on();          // the calling thread has lost the token in a long computation, and not waited since
ns_t local_now();
ns_t virtual_now();          // local time; the domain's for real-time threads
void advance(ns_t ns);       // charge the calling thread

// Before an effect that others see: lets those that are due earlier run first.
void sync(Thread *thread);
// Charges the calling thread; what it did before, others see before it goes on.
void charge(Thread *thread, ns_t ns);
// An effect that the kernel delivers: its receivers count as in flight until they are seen asleep.
void sent(Thread *thread);
// After something that others did was observed: local time is at least its time.
void observed(Thread *thread);
// One more round of a loop that waits without blocking.
void spin(Thread *thread, const char *call);
inline void progress(Thread *thread) { thread->spins = thread->clock_reads = thread->unheeded = 0; }

enum class Outcome { kTimedOut, kWoken, kInterrupted };
// Waits that only the domain ends.  enqueue() announces the wait so that no wake gets lost before wait().
void enqueue(Thread *thread, uint64_t queue, const char *call, const void *object);
// How signals' handlers end a wait: not at all; always; unless they were installed with SA_RESTART.
enum class Handlers { kDefer, kInterrupt, kRestart };
Outcome wait(Thread *thread, Kind kind, ns_t deadline, const char *call, Handlers handlers = Handlers::kDefer);
void cancel(Thread *thread);                     // leaves the queue
int wake(uint64_t queue, int count);             // how many were woken

// Waits that the kernel ends: block(); if it returns true, the system call; arrive().
bool block(Thread *thread, Kind kind, ns_t deadline, const char *call, uint64_t object);
bool arrive(Thread *thread);                     // true: the deadline came

// Slots
int reserve(ns_t time, int pid, int parent);     // for a thread or child to come; kNobody: domain full
void release(int index);
void claim(Thread *thread, int index);           // becomes the thread behind a slot; returns with the token
void join();                                     // the process, once: takes its place in the domain
void leave_thread(Thread *thread);
void leave_process();

void lock();
void unlock();
void pick();                                     // lock held: gives the token away if nobody has it
void settle(int duty);                           // repeats a pick that found something in flight
bool in_flight();                                // lock held
void until_asleep(int index);                    // before a signal or wake that only who is asleep notices
void settle_edges();                             // likewise, for all waits that a wake may miss
bool alive(int pid, int tid);
int move_high(int file);                         // a descriptor, to a number that programs do not expect
int state_letter(int pid, int tid);              // of /proc/<pid>/task/<tid>/stat; 0: gone
void grant(int index);
int search();                                    // the slot with the earliest key
void set_key(int index, ns_t key);
void set_call(Slot &slot, const char *call, uint64_t object);
void wake_holder(int index);                     // of the token

std::string describe();                          // who waits for what, a line per thread
void trace_jump(ns_t from, ns_t to);             // appends that to the file REVATI_DOMAIN_TRACE, if set

int64_t real_now_ns();
bool matches(const char *patterns, const char *name);  // comma-separated glob patterns

}  // namespace revati::domain
