// Streams, events and what is pending on them.
#pragma once
#include <deque>
#include <memory>

#include "core.h"
#include "rendezvous.h"

namespace revati {

constexpr ns_t kUnknown = -2;

// Durations at full clock, and what is needed to stretch and to power them; more of it beside a collective that waits.
struct Demand { double ns = 0, sensitive_ns = 0, joules_e9 = 0, crowded_ns = 0; };

// What ranks have done since they last met varies by so much from rank to rank.
struct Drift { double variance_ns2 = 0; };

// An event's recording; it outlives the event and its next recording.
struct Record {
  ns_t time = kUnknown;
  Stream *stream = nullptr;
};

// Of a graph's events: after which share of its time.
struct Mark {
  double share;
  std::shared_ptr<Record> record;
};

struct Op {
  enum Kind { kRun, kRecord, kWait } kind = kRun;
  Demand demand;
  ns_t gap = 0, gaps = 0;     // before its start, between its nodes
  ns_t issued = 0;            // host time of its submission
  int launches = 1;           // places in the launch queue
  int graph_collectives = 0;  // NCCL's kernels in a graph
  bool crowds = false;        // others, while it waits
  Meeting meeting;
  bool posted = false;
  std::shared_ptr<Record> record;
  std::vector<Mark> marks;
};

struct Stream {
  int device = 0;
  unsigned flags = 0;
  int priority = 0;
  ns_t tail = 0;              // virtual completion of everything that is not pending
  ns_t crowds_from = 0, crowds_until = 0;  // the last of those that did, one right after the other
  Drift drift;
  std::deque<Op> pending;
  Graph *capture = nullptr;   // the graph being captured, if any
  uint64_t capture_id = 0;
  bool capture_origin = false;
};
struct Event {
  int device = 0;
  std::shared_ptr<Record> record;  // null: never recorded
  uint64_t capture_id = 0;         // recorded inside this capture
  Graph *capture = nullptr;
};

// A kernel of the stream does so; `from` is where the one before ended, if it followed at once.
void crowd(Stream *stream, ns_t from, ns_t until);
REVATI_CORE Stream *stream_of(void *handle);   // resolves the default-stream handles
REVATI_CORE std::vector<Stream *> &streams();
void enqueue(Stream *stream, Op op);
std::shared_ptr<Record> begin_record(Event *event, Stream *stream);
REVATI_CORE void record(Event *event, Stream *stream);
REVATI_CORE bool captured(uint64_t id);  // by some stream at present
REVATI_CORE void record_in_graph(Event *event, Stream *stream);  // which captures one
REVATI_CORE void follow(Stream *stream, Event *event);   // what comes later on the stream waits for the event
REVATI_CORE bool done(Stream *stream);
REVATI_CORE bool done(Event *event);
REVATI_CORE void synchronize(Stream *stream);
REVATI_CORE void synchronize(Event *event);
REVATI_CORE void synchronize_device(int device);
REVATI_CORE void destroy(Stream *stream);

// launch.cpp
// Returns the end.  Until `crowded_until` it is crowded; 0: by nothing.
ns_t run_at(int device, ns_t start, const Demand &demand, ns_t gaps, ns_t crowded_until);
void entered_queue(int device, const Op &op, ns_t completion);
// Whether the device's launch queue has a place, not counting `pending`; `when` it has one.
bool queue_place(int device, size_t pending, ns_t *when);

}  // namespace revati
