// Launches: what a kernel costs (asked once per key), and what it does to its stream.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>

#include "stream.h"

namespace revati {

std::recursive_mutex mutex;

namespace {

struct KeyHash {
  size_t operator()(const LaunchKey &key) const {
    uint64_t hash = std::hash<const void *>()(key.name);
    auto mix = [&](int64_t value) { hash = (hash ^ static_cast<uint64_t>(value)) * 0x9E3779B97F4A7C15ULL; hash ^= hash >> 29; };
    for (int i = 0; i < 3; ++i) { mix(key.grid[i]); mix(key.block[i]); }
    mix(key.shared_bytes); mix(key.m); mix(key.n); mix(key.k); mix(key.batch); mix(key.bytes); mix(key.ranks);
    mix(key.num_tokens); mix(static_cast<int>(key.type));
    return hash;
  }
};
struct KeyEqual {
  bool operator()(const LaunchKey &a, const LaunchKey &b) const {
    return a.name == b.name && a.type == b.type && !std::memcmp(a.grid, b.grid, sizeof a.grid) &&
           !std::memcmp(a.block, b.block, sizeof a.block) && a.shared_bytes == b.shared_bytes && a.m == b.m &&
           a.n == b.n && a.k == b.k && a.batch == b.batch && a.bytes == b.bytes && a.ranks == b.ranks &&
           a.num_tokens == b.num_tokens;
  }
};

using Resolver = void (*)(const LaunchKey *, Cost *);
Resolver resolver = nullptr;
std::unordered_map<LaunchKey, Cost, KeyHash, KeyEqual> costs;

// GPU time and launches by the resolver's index of distinct launches.
struct Count { int64_t busy_ns = 0, launches = 0; };
std::vector<Count> counts;

struct Attention { ns_t duration[2] = {0, 0}; int32_t launch[2] = {-1, -1}; float power_w = 0, clock_sensitivity = 0, std_ns[2] = {0, 0}; };
Attention attention;

ns_t stream_gap_ns = 0, graph_gap_ns = 0;
int launch_queue_depth = 1024;
int graph_collective_limit = 36;
std::map<int, std::deque<ns_t>> queued;   // completion times of launches, per device
std::map<int, std::deque<ns_t>> graph_collectives;  // of NCCL's kernels that graphs launched
int32_t last_tokens = 0;

// A GPU lowers its clock until two averages of the power fit: a quick one its peak limit, a slow one its limit.
struct Limit { double watts = 0, time_constant_ns = 1; };
struct PowerLimits { Limit peak, slow; double idle_w = 0, exponent = 1; } power;
struct PowerState { double peak_w = 0, slow_w = 0; ns_t until = 0; };
std::map<int, PowerState> power_states;

double clock_stretch(const PowerState &state) {
  if (power.slow.watts <= 0) return 1;
  const double over = std::max((state.peak_w - power.idle_w) / (power.peak.watts - power.idle_w),
                               (state.slow_w - power.idle_w) / (power.slow.watts - power.idle_w));
  return over > 1 ? std::pow(over, 1 / power.exponent) : 1;
}

void draw(PowerState &state, double watts, double ns) {
  state.peak_w += (watts - state.peak_w) * (1 - std::exp(-ns / power.peak.time_constant_ns));
  state.slow_w += (watts - state.slow_w) * (1 - std::exp(-ns / power.slow.time_constant_ns));
}

// The expected maximum of n standard normal deviates.
double expected_maximum(int n) {
  constexpr double known[] = {0, 0, 0.564, 0.846, 1.029, 1.163, 1.267, 1.352, 1.424};
  return n <= 8 ? known[std::max(n, 0)] : std::sqrt(2 * std::log(n)) - 0.615;
}

// Waits for the slowest rank where ranks meet; between, each of them takes its own time.
void drift(Drift &drift, Demand &demand, const Cost &cost) {
  if (cost.ranks > 1) {
    demand.ns += expected_maximum(cost.ranks) * std::sqrt(drift.variance_ns2);
    drift.variance_ns2 = 0;
    return;
  }
  const bool fixed = cost.work == Work::kFixed;
  const double std_ns = fixed ? cost.std_ns : attention.std_ns[static_cast<int>(cost.work) - 1];
  drift.variance_ns2 += std_ns * std_ns;
}

void add(Demand &demand, const Cost &cost) {
  const bool fixed = cost.work == Work::kFixed;
  const double ns = static_cast<double>(fixed ? cost.duration : attention.duration[static_cast<int>(cost.work) - 1]);
  demand.ns += ns;
  demand.sensitive_ns += ns * (fixed ? cost.clock_sensitivity : attention.clock_sensitivity);
  demand.joules_e9 += ns * (fixed ? cost.power_w : attention.power_w);
  if (fixed) demand.crowded_ns += ns * cost.crowded;
}

ns_t duration_of(const Cost &cost) {
  return cost.work == Work::kFixed ? cost.duration : attention.duration[static_cast<int>(cost.work) - 1];
}

void count(const Cost &cost, ns_t duration) {
  const int32_t launch = cost.work == Work::kFixed ? cost.launch : attention.launch[static_cast<int>(cost.work) - 1];
  if (launch < 0) return;
  if (static_cast<size_t>(launch) >= counts.size()) counts.resize(static_cast<size_t>(launch) + 64);
  counts[static_cast<size_t>(launch)].busy_ns += duration;
  counts[static_cast<size_t>(launch)].launches += 1;
}

Cost price(LaunchKey key) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  key.num_tokens = 0;
  auto found = costs.find(key);
  if (found != costs.end() && !found->second.per_tokens) return found->second;
  LaunchKey full = key;
  full.num_tokens = last_tokens;
  if (found != costs.end()) {
    auto exact = costs.find(full);
    if (exact != costs.end()) return exact->second;
  }
  Cost cost;
  if (!resolver) return cost;  // before timing is attached (engine start) nothing is charged
  resolver(&full, &cost);
  if (cost.per_tokens) costs[full] = cost;
  costs[key] = cost;
  return cost;
}

}  // namespace

ns_t run_at(int device, ns_t start, const Demand &demand, ns_t gaps, ns_t crowded_until) {
  PowerState &state = power_states.try_emplace(device, PowerState{power.idle_w, power.idle_w, start}).first->second;
  if (start > state.until) draw(state, power.idle_w, static_cast<double>(start - state.until));
  double stretched = demand.ns + demand.sensitive_ns * (clock_stretch(state) - 1), crowding = 1;
  if (crowded_until > start && demand.ns > 0) {
    const double most = demand.crowded_ns / demand.ns, whole = stretched * (1 + most) + static_cast<double>(gaps);
    crowding += most * std::min(1.0, static_cast<double>(crowded_until - start) / whole);
    stretched *= crowding;
  }
  if (demand.ns > 0) {
    const double whole = stretched + static_cast<double>(gaps);
    const double joules_e9 = demand.joules_e9 / (demand.ns * crowding) * stretched + power.idle_w * static_cast<double>(gaps);
    draw(state, joules_e9 / whole, whole);
  }
  const ns_t end = start + static_cast<ns_t>(stretched) + gaps;
  state.until = std::max(state.until, end);
  return end;
}

void entered_queue(int device, const Op &op, ns_t completion) {
  auto &queue = queued[device], &collectives = graph_collectives[device];
  queue.insert(queue.end(), static_cast<size_t>(op.launches), completion);
  collectives.insert(collectives.end(), static_cast<size_t>(op.graph_collectives), completion);
}

// Leaves at most so many launches outstanding; `when` the last of those that must have completed has.
static void make_room(std::deque<ns_t> &queue, int most, ns_t *when) {
  while (static_cast<int>(queue.size()) > most) {
    *when = queue.front();
    queue.pop_front();
  }
}

// The driver's launch queue is finite: a host far ahead of the GPU waits for a place.
bool queue_place(int device, size_t pending, ns_t *when) {
  make_room(queued[device], launch_queue_depth, when);
  return static_cast<int>(pending) <= launch_queue_depth;
}

// The driver lets graphs have so many of NCCL's kernels outstanding; the launch of one more graph waits for those
// of earlier ones.  What it does with a graph that alone has more is not known.
static void await_collectives(int device, int more) {
  if (more == 0 || more > graph_collective_limit) return;
  ns_t place = 0;
  {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    make_room(graph_collectives[device], graph_collective_limit - more, &place);
  }
  if (place > now()) wait_until(place);
}

void submit(Stream *stream, const Cost &cost, Group *group, Roles roles) {
  if (cost.meets) group = all_reduce_group();
  Op op;
  op.gap = stream_gap_ns;
  op.launches = cost.launches;
  op.crowds = cost.crowds;
  {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (stream->capture) { stream->capture->nodes.push_back({cost, group}); return; }
    drift(stream->drift, op.demand, cost);
    add(op.demand, cost);
    count(cost, duration_of(cost));
    if (group) op.meeting = group->meet(roles);
  }
  enqueue(stream, std::move(op));
}

// The ranks that share a graph's collectives run in step: they meet once, at its start.
void replay(Stream *stream, const Graph *graph) {
  Op op;
  op.gap = stream_gap_ns;
  {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    Group *group = nullptr;
    const auto gaps_of = [](size_t nodes) { return graph_gap_ns * static_cast<ns_t>(nodes); };
    auto mark = [&, event = graph->events.begin()](size_t nodes) mutable {
      for (; event != graph->events.end() && event->follows == nodes; ++event)
        op.marks.push_back({op.demand.ns + static_cast<double>(gaps_of(nodes)), begin_record(event->event, stream)});
    };
    size_t nodes = 0;
    for (const Node &node : graph->nodes) {
      mark(nodes++);
      drift(stream->drift, op.demand, node.cost);
      add(op.demand, node.cost);
      count(node.cost, duration_of(node.cost));
      if (node.group) group = node.group;
      op.graph_collectives += node.group && !node.cost.meets;  // NCCL's, not the engine's own
    }
    mark(nodes);
    op.gaps = gaps_of(nodes);
    for (Mark &each : op.marks) each.share /= std::max(1.0, op.demand.ns + static_cast<double>(op.gaps));
    if (group) op.meeting = group->meet({});
  }
  await_collectives(stream->device, op.graph_collectives);
  enqueue(stream, std::move(op));
}

void launch_kernel(void *stream, const char *name, const unsigned grid[3], const unsigned block[3],
                   size_t shared_bytes) {
  LaunchKey key{};
  key.name = name;
  key.type = LaunchType::kKernel;
  for (int i = 0; i < 3; ++i) { key.grid[i] = static_cast<int32_t>(grid[i]); key.block[i] = static_cast<int32_t>(block[i]); }
  key.shared_bytes = static_cast<int64_t>(shared_bytes);
  submit(stream_of(stream), price(key));
}

void load_blas() {
  static std::map<int, bool> loaded;
  if (loaded[current_device()]) return;
  loaded[current_device()] = true;
  charge_memory(current_device(), static_cast<int64_t>(gpu().library_bytes));
}

void launch_gemm(void *stream, const char *types, int64_t m, int64_t n, int64_t k, int64_t batch) {
  LaunchKey key{};
  key.name = types;
  key.type = LaunchType::kGemm;
  key.m = m; key.n = n; key.k = k; key.batch = batch;
  last_tokens = static_cast<int32_t>(m);
  submit(stream_of(stream), price(key));
}

void launch_collective(void *stream, const char *op, int64_t bytes, Group *group, Roles roles) {
  LaunchKey key{};
  key.name = op;
  key.type = LaunchType::kCollective;
  key.bytes = bytes;
  key.ranks = group->ranks();
  submit(stream_of(stream), price(key), group, roles);
}

void launch_copy(void *stream, const char *direction, int64_t bytes) {
  LaunchKey key{};
  key.name = direction;
  key.type = LaunchType::kCopy;
  key.bytes = bytes;
  submit(stream_of(stream), price(key));
}

// An engine that has served such batches before finds all memory in its allocators' caches.  One emulated as
// such has not, so its allocations must not wait.
static bool allocations_wait = false;
void wait_to_allocate() {
  if (allocations_wait) synchronize_device(current_device());
}

}  // namespace revati

using namespace revati;

REVATI_API void revati_set_allocations_wait(int wait) { allocations_wait = wait; }
REVATI_API void revati_set_resolver(void (*callback)(const LaunchKey *, Cost *)) {
  resolver = callback;
  costs.clear();
}
// Streams that wait for something outside this process's launches, such as a peer's send.
REVATI_API int64_t revati_stream_time(void *stream) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  return stream_of(stream)->tail;
}
REVATI_API void revati_stream_wait(void *stream, int64_t ns) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  Stream *waiting = stream_of(stream);
  waiting->tail = std::max<ns_t>(waiting->tail, ns);
}
// The same by a kernel that crowds those of other streams meanwhile.
REVATI_API void revati_stream_crowd(void *stream, int64_t ns) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  Stream *waiting = stream_of(stream);
  const ns_t from = std::max(waiting->tail, now());
  revati_stream_wait(stream, ns);
  crowd(waiting, from, waiting->tail);
}
REVATI_API void revati_set_gaps(int64_t stream_ns, int64_t graph_ns) {
  stream_gap_ns = stream_ns;
  graph_gap_ns = graph_ns;
}
// How far ahead of the GPU the host may launch.
REVATI_API void revati_set_queue(int depth, int graph_collectives) {
  launch_queue_depth = depth;
  graph_collective_limit = graph_collectives;
}
// Limits of 0 W: kernels always run at full clock.
REVATI_API void revati_set_power_limits(double peak_w, int64_t peak_time_constant_ns, double limit_w,
                                        int64_t time_constant_ns, double idle_w, double exponent) {
  power = {{peak_w, static_cast<double>(peak_time_constant_ns)}, {limit_w, static_cast<double>(time_constant_ns)},
           idle_w, exponent};
}
// Durations of one layer's attention kernels for the batch about to run.
REVATI_API void revati_set_attention(int64_t main_ns, int64_t combine_ns, int main_launch, int combine_launch,
                                     float power_w, float clock_sensitivity, float main_std_ns,
                                     float combine_std_ns) {
  attention.power_w = power_w;
  attention.clock_sensitivity = clock_sensitivity;
  attention.duration[0] = main_ns;
  attention.duration[1] = combine_ns;
  attention.launch[0] = main_launch;
  attention.launch[1] = combine_launch;
  attention.std_ns[0] = main_std_ns;
  attention.std_ns[1] = combine_std_ns;
}
// GPU time [ns] and number of launches by index, zero where nothing was counted; arrays of `size`.
REVATI_API void revati_gpu_time(int64_t *busy_ns, int64_t *launches, int size) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  for (int i = 0; i < size; ++i) {
    const Count count = static_cast<size_t>(i) < counts.size() ? counts[static_cast<size_t>(i)] : Count{};
    busy_ns[i] = count.busy_ns;
    launches[i] = count.launches;
  }
}
// A new measurement: nothing is counted yet, and the GPUs are as cool as if they had been idle for long, whatever
// the engine did to start, which depends on what its compiler finds in its caches.
REVATI_API void revati_begin_measurement() {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  counts.clear();
  power_states.clear();
}
