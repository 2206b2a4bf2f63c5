// Descriptors that members wait for, in one epoll instance that all processes of a domain share.
//
// A receiver sleeps until it gets the token: a message does not wake it.  Whoever gives the token away asks the
// epoll instance first, and marks those ready for whom something has come.
#pragma once
#include "protocol.h"

namespace revati::domain {

constexpr int kMostExpected = 16;

// What the calling thread waits for, while this exists.
class Expectation {
 public:
  Expectation(Thread *thread, const char *call, uint64_t object);
  ~Expectation();
  Expectation(const Expectation &) = delete;
  Expectation &operator=(const Expectation &) = delete;
  // `events` as for poll().  False: it has to be waited for in the kernel (a regular file; the same descriptor of the
  // same open file is expected by another thread or process).
  bool add(int file, uint32_t events);

 private:
  Thread *thread_;
  int files_[kMostExpected], count_ = 0;
};

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

bool collect();               // lock held: delivers what has come; false: nothing
bool keeps_inbox(int file);   // a descriptor that its program does not know of
bool fetch_inbox();           // a member, once, from the monitor; false: the domain has ended or nobody answers
void serve_inbox();           // the monitor: answers those that wait for it
int inbox_requests();         // the monitor's descriptor, readable when somebody does; made with the inbox
int inbox_descriptor();       // readable when there is something to collect

}  // namespace revati::domain
