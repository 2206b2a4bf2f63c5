// The CUDA runtime: streams, events and graphs.
#include <algorithm>
#include <cstring>

#include "../core/stream.h"
#include "cudart.h"

using namespace revati;

static constexpr unsigned kExternal = 1;  // flag of an event that a graph records, or waits for, each time that it runs

REVATI_API int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
  auto *s = new Stream;
  s->device = current_device();
  s->flags = flags;
  s->priority = priority;
  streams().push_back(s);
  *stream = s;
  return kSuccess;
}
REVATI_API int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return cudaStreamCreateWithPriority(stream, flags, 0); }
REVATI_API int cudaStreamCreate(void **stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
REVATI_API int cudaStreamDestroy(void *stream) { destroy(static_cast<Stream *>(stream)); return kSuccess; }
REVATI_API int cudaStreamGetPriority(void *stream, int *priority) { *priority = stream_of(stream)->priority; return kSuccess; }
REVATI_API int cudaStreamGetFlags(void *stream, unsigned *flags) { *flags = stream_of(stream)->flags; return kSuccess; }
REVATI_API int cudaStreamGetDevice(void *stream, int *device) { *device = stream_of(stream)->device; return kSuccess; }
REVATI_API int cudaStreamGetId(void *stream, unsigned long long *id) { *id = reinterpret_cast<uintptr_t>(stream); return kSuccess; }
REVATI_API int cudaStreamSynchronize(void *stream) { host_call(); synchronize(stream_of(stream)); return kSuccess; }
REVATI_API int cudaStreamQuery(void *stream) { return done(stream_of(stream)) ? kSuccess : kNotReady; }
REVATI_API int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
  if (!stream_of(stream)->capture) function(data);
  return kSuccess;
}
REVATI_API int cudaStreamAddCallback(void *stream, void (*function)(void *, int, void *), void *data, unsigned) { function(stream, kSuccess, data); return kSuccess; }

REVATI_API int cudaEventCreateWithFlags(void **event, unsigned) { auto *e = new Event; e->device = current_device(); *event = e; return kSuccess; }
REVATI_API int cudaEventCreate(void **event) { return cudaEventCreateWithFlags(event, 0); }
REVATI_API int cudaEventDestroy(void *event) { delete static_cast<Event *>(event); return kSuccess; }
REVATI_API int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) {
  auto *e = static_cast<Event *>(event);
  Stream *s = stream_of(stream);
  host_call();
  if (s->capture && flags & kExternal) { record_in_graph(e, s); return kSuccess; }
  e->capture = s->capture;
  e->capture_id = s->capture_id;
  if (!s->capture) record(e, s);
  return kSuccess;
}
REVATI_API int cudaEventRecord(void *event, void *stream) { return cudaEventRecordWithFlags(event, stream, 0); }
REVATI_API int cudaEventQuery(void *event) { return done(static_cast<Event *>(event)) ? kSuccess : kNotReady; }
REVATI_API int cudaEventSynchronize(void *event) { synchronize(static_cast<Event *>(event)); return kSuccess; }
REVATI_API int cudaEventElapsedTime(float *ms, void *start, void *end) {
  const auto &from = static_cast<Event *>(start)->record, &to = static_cast<Event *>(end)->record;
  if (!from || !to) return report(kInvalidHandle);
  if (!done(static_cast<Event *>(start)) || !done(static_cast<Event *>(end))) return kNotReady;
  const ns_t elapsed = to->time - from->time;
  *ms = std::max<ns_t>(elapsed, 1000) * 1e-6f;  // callers that tune divide by it
  return kSuccess;
}
REVATI_API int cudaEventElapsedTime_v2(float *ms, void *start, void *end) { return cudaEventElapsedTime(ms, start, end); }
REVATI_API int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
  Stream *s = stream_of(stream);
  auto *e = static_cast<Event *>(event);
  if (s->capture && flags & kExternal) return report(kNotSupported);  // a graph that waits for other streams
  if (e->capture && !s->capture) {
    if (!captured(e->capture_id)) return report(kCapturedEvent);
    s->capture = e->capture;
    s->capture_id = e->capture_id;
    s->capture_origin = false;
  } else if (!s->capture) {
    follow(s, e);
  }
  return kSuccess;
}
struct IpcEventHandle { char bytes[64]; };
REVATI_API int cudaIpcGetEventHandle(IpcEventHandle *handle, void *event) { std::memset(handle, 0, sizeof *handle); std::memcpy(handle->bytes, &event, sizeof event); return kSuccess; }

REVATI_API int cudaStreamBeginCapture(void *stream, int) {
  static uint64_t next_id = 0;
  Stream *s = stream_of(stream);
  s->capture = new Graph;
  s->capture_id = ++next_id;
  s->capture_origin = true;
  return kSuccess;
}
REVATI_API int cudaStreamEndCapture(void *stream, void **graph) {
  Stream *s = stream_of(stream);
  *graph = s->capture;
  const uint64_t id = s->capture_id;
  for (Stream *other : streams())
    if (other->capture_id == id) { other->capture = nullptr; other->capture_id = 0; }
  return kSuccess;
}
REVATI_API int cudaStreamIsCapturing(void *stream, int *status) { *status = stream_of(stream)->capture ? 1 : 0; return kSuccess; }
REVATI_API int cudaStreamGetCaptureInfo(void *stream, int *status, unsigned long long *id, void **graph, const void ***dependencies, const void **edges, size_t *count) {
  Stream *s = stream_of(stream);
  *status = s->capture ? 1 : 0;
  if (id) *id = s->capture_id;
  if (graph) *graph = s->capture;
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return kSuccess;
}
REVATI_API int cudaStreamUpdateCaptureDependencies(void *, void *, const void *, size_t, unsigned) { return kSuccess; }
REVATI_API int cudaThreadExchangeStreamCaptureMode(int *mode) { thread_local int current = 0; std::swap(*mode, current); return kSuccess; }
REVATI_API int cudaGraphCreate(void **graph, unsigned) { *graph = new Graph; return kSuccess; }
REVATI_API int cudaGraphDestroy(void *graph) { delete static_cast<Graph *>(graph); return kSuccess; }
REVATI_API int cudaGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long) {
  const auto *g = static_cast<Graph *>(graph);
  *exec = new Graph(*g);
  charge_memory(current_device(), static_cast<int64_t>(g->nodes.size() * gpu().graph_node_bytes));
  return kSuccess;
}
REVATI_API int cudaGraphInstantiate(void **exec, void *graph, unsigned long long flags) { return cudaGraphInstantiateWithFlags(exec, graph, flags); }
REVATI_API int cudaGraphExecDestroy(void *exec) {
  const auto *g = static_cast<Graph *>(exec);
  charge_memory(current_device(), -static_cast<int64_t>(g->nodes.size() * gpu().graph_node_bytes));
  delete g;
  return kSuccess;
}
REVATI_API int cudaGraphUpload(void *, void *) { return kSuccess; }
REVATI_API int cudaGraphLaunch(void *exec, void *stream) { replay(stream_of(stream), static_cast<Graph *>(exec)); return kSuccess; }
REVATI_API int cudaGraphGetNodes(void *graph, void **nodes, size_t *count) {
  auto *g = static_cast<Graph *>(graph);
  if (nodes)
    for (size_t i = 0; i < std::min(*count, g->nodes.size()); ++i) nodes[i] = &g->nodes[i];
  *count = g->nodes.size();
  return kSuccess;
}
REVATI_API int cudaGraphNodeGetType(void *, int *type) { *type = 0; return kSuccess; }  // kernels only
REVATI_API int cudaGraphDebugDotPrint(void *, const char *, unsigned) { return kSuccess; }
