// Which clocks are virtual, and where their zero lies.
#pragma once
#include <time.h>

#include <algorithm>

#include "protocol.h"
#include "real.h"

namespace revati::domain {

bool is_virtual(clockid_t clock);
ns_t epoch(clockid_t clock);                                     // the clock's value at virtual zero
ns_t deadline_of(clockid_t clock, const timespec *absolute);     // null: never
inline ns_t after(ns_t ns) { return ns >= kNever ? kNever : std::min(kNever, virtual_now() + std::max<ns_t>(0, ns)); }

}  // namespace revati::domain
