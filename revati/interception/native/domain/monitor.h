// The monitor's parts.
#pragma once
#include <string>

#include "protocol.h"

namespace revati::domain {

constexpr int64_t kMs = 1000000;

// Waits for a death, at most so long; also for new members, and for messages from outside where nobody runs.
// `reason` gets text when a process died without leaving.
void watch_deaths(int64_t wait_ns, std::string &reason);
void forget_deaths();  // of the domain before

// Whoever waits, computes, or starts where no hook sees it.
void wait_unhooked(Slot &slot, const char *call);  // lock held: takes the token away
bool look_after_unclaimed();                       // true: there are such programs
void look_after_unseen();

}  // namespace revati::domain
