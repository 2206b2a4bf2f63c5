// The shared-memory segment of a domain: what its processes know of each other.
//
// Every thread of a domain has a slot.  Exactly one slot at most holds the run token; the others are ready
// (want to run at their key), blocked (until their key, a wake, or the kernel), leaving, or outside.
// All fields but the atomics are protected by the lock.  Times are ns of virtual time since the creation.
#pragma once
#include <pthread.h>

#include <atomic>
#include <cstdint>

namespace revati::domain {

using ns_t = int64_t;

constexpr uint64_t kMagic = 0x5245564154490008ULL;  // "REVATI", layout version 8
constexpr int kSlots = 4096;
constexpr int kNobody = -1;
constexpr int kAreaBytes = 2 << 20;
constexpr int kFiles = 1024, kFileName = 64;
constexpr ns_t kNever = INT64_MAX / 4;  // leaves room for additions

enum class State : int32_t {
  kFree = 0,
  kReady,    // waits for the token; key: its time
  kRunning,  // holds the token
  kBlocked,  // key: its deadline
  kLeaving,  // exits: in flight until the kernel has finished with it
  kOutside,  // real-time thread: waits in real time, never holds the clock
};

// Who can end a wait before its deadline.
enum class Kind : int32_t {
  kTimer = 0,    // nobody: never looked at by scans
  kQueue,        // a hooked waker: likewise
  kMessage,      // the domain, when the kernel has told it that something came (inbox.h): likewise
  kSpin,         // a loop that looks again and again: whoever has run may have given it what it looks for
  kKernel,       // the kernel (full pipes, children, locks between processes): scanned before jumps
  kEdge,         // likewise, by a wake that is lost on who is not asleep yet (shared futexes, pause)
  kSignalled,    // the kernel, in a wait that the domain ends by a signal: scanned
  kUnhooked,     // blocked in a call that we do not interpose: scanned
};

struct alignas(64) Slot {
  std::atomic<State> state;
  std::atomic<uint32_t> word;      // futex: 1 = go on
  std::atomic<uint32_t> entering;  // blocked, but not in its system call yet
  std::atomic<uint32_t> arrived;   // back from the kernel, before it takes the lock
  std::atomic<uint32_t> running;   // has seen its grant
  Kind kind;
  int32_t pid, tid, parent;
  int32_t claimed;                 // a thread stands behind the slot (0: reserved for a child or an exec)
  int32_t woken;                   // a hooked waker, or a message, ended the wait
  std::atomic<uint32_t> expects;   // the inbox knows what it waits for
  int32_t preempted;               // lost the token while computing or in a call that we do not interpose
  int32_t exit_expected;           // a member killed it
  std::atomic<uint32_t> signalled; // a member sent it a signal: scanned, whatever it waits for
  std::atomic<uint32_t> interrupt; // the grant has to end a system call by the wake signal
  std::atomic<uint32_t> keeps_token; // asleep until a real-time thread unlocks a mutex
  uint32_t generation;             // of the slot's use
  ns_t time;                       // local time when it last gave up the token
  ns_t deadline;
  ns_t unstretched;                // what the deadline would be of an idle loop that did not wait longer; 0: is none
  uint64_t handle;                 // pthread_t
  uint64_t grants;                 // of the token to it
  uint64_t object;                 // what it waits for: an address or a descriptor
  int64_t since_real_ns;           // real time of the last change of state
  char call[24], name[16];
};

struct Counters {
  std::atomic<uint64_t> grants, self_grants, jumps, scans, scanned, retries, sends, preemptions;
  std::atomic<int64_t> settle_ns;  // real time spent on waiting for others to fall asleep
};

// By slot, side by side for quick searches.  A domain of few threads needs one of them, on the page of the fields
// that every hand-over of the token reads: after a switch between processes each page costs a walk through cold tables.
constexpr int kBlock = 64;
struct Keys {
  ns_t key[kBlock];
  uint64_t order[kBlock];
  uint64_t waits_for[kBlock];      // queue of a hooked wait, 0: none
};

struct Domain {
  uint64_t magic, bytes;
  pthread_mutex_t lock;            // robust, process-shared
  // options
  ns_t skew;
  double cpu_factor;
  int32_t break_scan;              // tests only: jump without looking for messages in flight
  int32_t break_reserve;           // tests only: no slot for a child before it joins
  ns_t epoch_real, epoch_mono, epoch_boot;  // real clocks at virtual zero
  // progress
  std::atomic<int32_t> token;      // slot index or kNobody
  std::atomic<int32_t> ended;
  std::atomic<ns_t> now;           // the latest time at which the token was granted
  std::atomic<ns_t> last_send;
  std::atomic<ns_t> next_key;      // the earliest key of all but the token's holder
  std::atomic<int32_t> in_doubt;   // scans owed before a jump: 2 after a send, 1 after one scan
  std::atomic<int32_t> unhooked;   // somebody waits where no hook sees it: every jump needs a scan
  std::atomic<int32_t> spinners;   // there may be spinning threads
  ns_t stirred;                    // at this time something may have changed for them; kNever: they know
  ns_t checked;                    // time of the last jump that found nothing in flight
  std::atomic<int32_t> duty;       // who retries a jump that found something in flight
  int32_t suspect;                 // the slot that it found
  int32_t high;                    // slots used so far
  uint64_t sequence;               // order of keys, for ties
  std::atomic<uint64_t> next_id;   // of semaphores and conditions
  Counters counters;
  Keys keys[kSlots / kBlock];
  Slot slots[kSlots];
  char reason[512];                // of its end
  char real_time_threads[512];     // comma-separated glob patterns
  char idle_libraries[512];        // likewise, of file names
  char files[kFiles][kFileName];   // names in /dev/shm that members have created; "": free
  alignas(64) unsigned char area[kAreaBytes];  // of the emulated GPUs: where collectives meet

  ns_t &key(int slot) { return keys[slot / kBlock].key[slot % kBlock]; }
  uint64_t &order(int slot) { return keys[slot / kBlock].order[slot % kBlock]; }
  uint64_t &waits_for(int slot) { return keys[slot / kBlock].waits_for[slot % kBlock]; }
  ns_t key(int slot) const { return keys[slot / kBlock].key[slot % kBlock]; }
  uint64_t order(int slot) const { return keys[slot / kBlock].order[slot % kBlock]; }
  ns_t earliest() const;           // of all keys
};

}  // namespace revati::domain
