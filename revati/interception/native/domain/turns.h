// How the calling thread gives up the token, waits for its turn, and goes on.  For the protocol's own files.
#pragma once
#include "protocol.h"

namespace revati::domain {

constexpr int64_t kRealSecond = 1000000000;

void publish();                  // local time stands still from here on; resume() starts it again
void resume();
void become_ready(ns_t when);    // lock held
void give_up_token();            // likewise
// False: a signal's handler ran first.
bool await_grant(Handlers handlers = Handlers::kDefer);
// Lock held; before the token is given up: spinning threads look again, at the time of what they may see.
void stir(ns_t when);
void trace(ns_t to);             // notes a long jump, if asked to
long futex_wait(std::atomic<uint32_t> &word, uint32_t value, int64_t real_ns);  // kNever: without a limit
void futex_wake(std::atomic<uint32_t> &word);

}  // namespace revati::domain
