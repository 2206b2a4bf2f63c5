// Streams and events: when what was submitted completes.
//
// Usually that is known at once.  What follows a meeting with other ranks stays pending until they are ready.
#include <algorithm>
#include <limits>

#include "rendezvous.h"
#include "stream.h"

// Of librevati_domain.so: a poll that found nothing, so that loops of them let time pass.
extern "C" __attribute__((weak)) void revati_spin(const char *call);

namespace revati {
namespace {

Stream default_streams[64];
std::vector<Stream *> all_streams;

ns_t begin_of(const Stream *stream, const Op &op) { return std::max(stream->tail + op.gap, op.issued); }

// Until when collectives of other streams that wait for their peers crowd what starts then; 0: none does.
ns_t crowded_until(const Stream *stream, ns_t start) {
  ns_t until = 0;
  for (const Stream *other : all_streams) {
    if (other == stream || other->device != stream->device) continue;
    if (other->crowds_from <= start && start < other->crowds_until) until = std::max(until, other->crowds_until);
    if (other->pending.empty() || !other->pending.front().crowds) continue;
    const Op &waiting = other->pending.front();
    const ns_t begin = begin_of(other, waiting), peers = latest(waiting.meeting);
    if (begin <= start) until = std::max(until, peers < 0 ? std::numeric_limits<ns_t>::max() : peers);
  }
  return until;
}

// Executes what can be; true: nothing is pending any more.
bool progress(Stream *stream) {
  while (!stream->pending.empty()) {
    Op &op = stream->pending.front();
    if (op.kind == Op::kWait) {
      if (op.record->time == kUnknown && !(progress(op.record->stream), op.record->time != kUnknown)) return false;
      stream->tail = std::max(stream->tail, op.record->time);
    } else if (op.kind == Op::kRecord) {
      op.record->time = std::max(stream->tail, op.issued);
    } else {
      const ns_t begin = begin_of(stream, op);
      ns_t start = begin;
      if (op.meeting.lane) {
        if (op.meeting.posts() && !op.posted) {
          op.posted = true;
          post(op.meeting, start);
        }
        if (op.meeting.waits()) {
          const ns_t others = latest(op.meeting);
          if (others < 0) return false;
          start = std::max(start, others);
        }
      }
      const ns_t crowded = op.demand.crowded_ns > 0 ? crowded_until(stream, start) : 0;
      stream->tail = run_at(stream->device, start, op.demand, op.gaps, crowded);
      for (const Mark &mark : op.marks)
        mark.record->time = start + static_cast<ns_t>(mark.share * static_cast<double>(stream->tail - start));
      if (op.crowds) crowd(stream, begin - op.gap, stream->tail);
      entered_queue(stream->device, op, stream->tail);
    }
    stream->pending.pop_front();
  }
  return true;
}

// What a stream that does not progress waits for.
Meeting blocker(const Stream *stream) {
  const Op &op = stream->pending.front();
  return op.kind == Op::kWait ? blocker(op.record->stream) : op.meeting;
}

// Blocks the host until the stream's completion, or an event's time, is known.
void settle(Stream *stream, const Record *record) {
  while (true) {
    Meeting meeting;
    {
      std::lock_guard<std::recursive_mutex> lock(mutex);
      if (progress(stream) || (record && record->time != kUnknown)) return;
      meeting = blocker(stream);
    }
    wait_for(meeting);
  }
}

}  // namespace

std::vector<Stream *> &streams() {
  if (all_streams.empty())
    for (int i = 0; i < 64; ++i) { default_streams[i].device = i; all_streams.push_back(&default_streams[i]); }
  return all_streams;
}

void crowd(Stream *stream, ns_t from, ns_t until) {
  if (from > stream->crowds_until) stream->crowds_from = from;
  stream->crowds_until = until;
}

Stream *stream_of(void *handle) {
  const uintptr_t value = reinterpret_cast<uintptr_t>(handle);
  if (value <= 2) { streams(); return &default_streams[current_device()]; }  // default, legacy, per-thread
  return static_cast<Stream *>(handle);
}

void enqueue(Stream *stream, Op op) {
  host_call();
  op.issued = now();
  const bool together = op.meeting.lane && op.meeting.source < 0;
  ns_t place = 0;
  bool full;
  {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    stream->pending.push_back(std::move(op));
    progress(stream);
    full = !queue_place(stream->device, stream->pending.size(), &place);
  }
  // Ranks launch a collective of all of them in step: whoever is first waits for the others here.
  if (together || full) settle(stream, nullptr);
  if (place > now()) wait_until(place);
}

std::shared_ptr<Record> begin_record(Event *event, Stream *stream) {
  return event->record = std::make_shared<Record>(Record{kUnknown, stream});
}

void record(Event *event, Stream *stream) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  Op op;
  op.kind = Op::kRecord;
  op.issued = now();
  op.record = begin_record(event, stream);
  stream->pending.push_back(std::move(op));
  progress(stream);
}

bool captured(uint64_t id) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto &all = streams();
  return std::any_of(all.begin(), all.end(), [id](const Stream *stream) { return stream->capture && stream->capture_id == id; });
}

void record_in_graph(Event *event, Stream *stream) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  stream->capture->events.push_back({stream->capture->nodes.size(), event});
}

void follow(Stream *stream, Event *event) {
  if (!event->record) return;
  std::lock_guard<std::recursive_mutex> lock(mutex);
  Op op;
  op.kind = Op::kWait;
  op.record = event->record;
  stream->pending.push_back(std::move(op));
  progress(stream);
}

bool done(Stream *stream) {
  {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (progress(stream) && stream->tail <= now()) return true;
  }
  if (revati_spin) revati_spin("cudaStreamQuery");
  return false;
}

bool done(Event *event) {
  {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (!event->record) return true;
    if (event->record->time == kUnknown) progress(event->record->stream);
    if (event->record->time != kUnknown && event->record->time <= now()) return true;
  }
  if (revati_spin) revati_spin("cudaEventQuery");
  return false;
}

void synchronize(Stream *stream) {
  settle(stream, nullptr);
  wait_until(stream->tail);
}

void synchronize(Event *event) {
  const std::shared_ptr<Record> record = event->record;
  if (!record) return;
  settle(record->stream, record.get());
  wait_until(record->time);
}

void synchronize_device(int device) {
  std::vector<Stream *> on_device;
  {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    for (Stream *stream : streams())
      if (stream->device == device) on_device.push_back(stream);
  }
  for (Stream *stream : on_device) synchronize(stream);
}

void destroy(Stream *stream) {
  settle(stream, nullptr);
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto &all = streams();
  all.erase(std::remove(all.begin(), all.end(), stream), all.end());
  delete stream;
}

}  // namespace revati
