// Waits for descriptors, also for those that only receive with a time limit.
#pragma once

#include <poll.h>
#include <signal.h>

#include "protocol.h"

namespace revati::domain {

// Waits until one of the files has an event, or for the deadline in virtual time; as ppoll() returns it.
int poll_until(Thread *thread, pollfd *files, nfds_t count, ns_t deadline, const sigset_t *mask);

// Somebody may wait for the next look of a thread: if it is an idle loop, it does not wait any longer than it asked
// for. Lock held.
void unstretch(int index);

}  // namespace revati::domain
