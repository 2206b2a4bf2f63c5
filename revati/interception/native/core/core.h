// The emulated machine: devices, memory, streams and the virtual clock that the API stand-ins share.
//
// Time is in nanoseconds of virtual time.  A launch extends its stream's completion time by the kernel's
// predicted duration; the host clock moves only by charged phases and by waits for such completions.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#define REVATI_API extern "C" __attribute__((visibility("default")))
#define REVATI_CORE __attribute__((visibility("default")))

namespace revati {

using ns_t = int64_t;

// ---- description of the machine (from the environment, written by revati.interception.launch) ----
struct GpuDescription {
  std::string name, uuid_prefix, driver_version;
  int count = 0;
  int cuda_driver_version = 0;       // as cudaDriverGetVersion reports it
  size_t memory_bytes = 0;           // cudaDeviceProp.totalGlobalMem
  size_t nvml_memory_bytes = 0;      // what nvidia-smi calls the total
  // Device memory outside any allocation of the program:
  size_t context_bytes = 0;          // the CUDA context and its first modules
  size_t library_bytes = 0;          // cuBLAS and further modules, from the first product on
  size_t communicator_bytes = 0;     // NCCL's buffers and channels, a communicator of several ranks
  size_t graph_node_bytes = 0;       // a kernel node of an instantiated graph
  int nvlink_links = 0;
  std::map<int, int> attributes;     // cudaDeviceAttr -> value
};
REVATI_CORE const GpuDescription &gpu();

// ---- virtual time ----
REVATI_CORE ns_t now();
REVATI_CORE void wait_until(ns_t when);  // the calling virtual core waits for a completion
REVATI_CORE void host_call();            // one CUDA call that takes its share of the current host phase

// ---- launches ----
enum class Work : int32_t { kFixed = 0, kAttention = 1, kAttentionCombine = 2 };
enum class LaunchType : int32_t { kKernel = 0, kGemm = 1, kCollective = 2, kCopy = 3 };

// What interception sees of a launch; handed to the resolver once per distinct key.
struct LaunchKey {
  const char *name;      // mangled kernel name, GEMM data types, collective or copy direction
  LaunchType type;
  int32_t grid[3], block[3];
  int64_t shared_bytes;
  int64_t m, n, k, batch;  // GEMM, in row-major terms: out[m, n] = a[m, k] @ b[k, n]
  int64_t bytes;           // collectives, copies
  int32_t ranks;
  int32_t num_tokens;      // rows of the last GEMM: the tokens of the forward pass in progress, padding included
};
struct Cost {
  ns_t duration = 0;
  Work work = Work::kFixed;
  int32_t launch = -1;     // index into the resolver's list of distinct launches; -1: not counted
  int32_t per_tokens = 0;  // the answer depends on LaunchKey::num_tokens
  float power_w = 0;       // drawn at full clock while it runs
  float clock_sensitivity = 0;  // relative growth of its duration per relative growth of the clock period
  int32_t meets = 0;       // a custom all-reduce: the ranks of its group meet
  int32_t launches = 1;    // places that it takes in the device's launch queue
  int32_t ranks = 0;       // a collective of so many ranks, which starts when the slowest is there
  float std_ns = 0;        // of its duration from one time to the next
  int32_t crowds = 0;      // while it waits for other ranks, it holds a place that other kernels lack
  float crowded = 0;       // relative growth of its duration beside one that does
};

class Group;     // rendezvous.h
struct Stream;   // stream.h
struct Event;

struct Node {
  Cost cost;
  Group *group;  // whose ranks meet for it; null: none
};
struct EventNode {
  size_t follows;  // so many nodes
  Event *event;    // recorded there each time that the graph runs
};
struct Graph {
  std::vector<Node> nodes;
  std::vector<EventNode> events;
};

REVATI_CORE extern std::recursive_mutex mutex;
// Which ranks of a group have to be ready: all, or the source of a broadcast, or of a message to a destination.
struct Roles { int source = -1, destination = -1; };
REVATI_CORE void submit(Stream *stream, const Cost &cost, Group *group = nullptr, Roles roles = {});
REVATI_CORE void launch_kernel(void *stream, const char *name, const unsigned grid[3], const unsigned block[3],
                               size_t shared_bytes);
REVATI_CORE void launch_gemm(void *stream, const char *types, int64_t m, int64_t n, int64_t k, int64_t batch);
REVATI_CORE void load_blas();  // cuBLAS takes memory from its first product on
REVATI_CORE void launch_collective(void *stream, const char *op, int64_t bytes, Group *group,
                                   Roles roles = {});
REVATI_CORE void launch_copy(void *stream, const char *direction, int64_t bytes);
REVATI_CORE void replay(Stream *stream, const Graph *graph);

// ---- memory ----
enum class Space { kUnregistered = 0, kHost = 1, kDevice = 2 };
struct Allocation {
  uintptr_t base = 0;
  size_t bytes = 0;
  Space space = Space::kUnregistered;
  int device = 0;
  bool owned = false;         // mapped by us, so unmapped by us
  bool counted = false;       // takes device memory
};
REVATI_CORE void *device_alloc(size_t bytes, int device, bool counted = true);  // null: out of memory
REVATI_CORE void *host_alloc(size_t bytes);
REVATI_CORE void host_register(void *pointer, size_t bytes);
REVATI_CORE bool release(void *pointer);
REVATI_CORE const Allocation *find_allocation(const void *pointer);
REVATI_CORE void memory_info(int device, size_t *free_bytes, size_t *total_bytes);
REVATI_CORE void wait_to_allocate();   // changing the memory map waits for the work on the current device
REVATI_CORE void charge_memory(int device, int64_t bytes);   // memory taken outside any allocation
// Copies of at most this many bytes carry data that the host may read back; larger ones are bulk.
constexpr size_t kMetadataBytes = 1 << 20;
REVATI_CORE const char *copy(void *dst, const void *src, size_t bytes);  // returns the direction
REVATI_CORE void copy_async(void *dst, const void *src, size_t bytes, void *stream);
REVATI_CORE void fill(void *dst, int value, size_t bytes);

REVATI_CORE int current_device();
REVATI_CORE bool set_current_device(int device);

// An API that nobody implemented was called: say so by name, and fail.
REVATI_CORE int unimplemented(const char *api);

}  // namespace revati

REVATI_API int revati_unimplemented(const char *api);
