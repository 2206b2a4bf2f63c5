// libnccl.so.2: communicators are state, collectives are launches keyed by bytes and ranks.
#include <sys/random.h>

#include <cstring>

#include "../core/rendezvous.h"

using namespace revati;

namespace {
struct UniqueId { uint64_t id; char rest[120]; };
struct Comm {
  Group group;
  int device;
};
Comm *comm(void *c) { return static_cast<Comm *>(c); }
int64_t element_bytes(int type) {
  static const int64_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};  // ncclDataType_t, in order
  return sizes[type];
}
void charge(const Comm &comm, int sign) {
  if (comm.group.ranks() > 1) charge_memory(comm.device, sign * static_cast<int64_t>(gpu().communicator_bytes));
}
int collective(const char *op, size_t count, int type, void *c, void *stream, Roles roles = {}) {
  launch_collective(stream, op, static_cast<int64_t>(count) * element_bytes(type), &comm(c)->group, roles);
  return 0;
}
}  // namespace

REVATI_API int ncclGetVersion(int *version) { *version = 22809; return 0; }
REVATI_API int ncclGetUniqueId(UniqueId *id) {
  std::memset(id, 0, sizeof *id);
  return getrandom(&id->id, sizeof id->id, 0) == sizeof id->id ? 0 : 2;  // ncclSystemError
}
REVATI_API int ncclCommInitRank(void **out, int ranks, UniqueId id, int rank) {
  auto *made = new Comm{Group(id.id, rank, ranks), current_device()};
  charge(*made, 1);
  *out = made;
  return 0;
}
REVATI_API int ncclCommInitRankConfig(void **out, int ranks, UniqueId id, int rank, void *) { return ncclCommInitRank(out, ranks, id, rank); }
REVATI_API int ncclCommInitRankScalable(void **out, int ranks, int rank, int, UniqueId *id, void *) { return ncclCommInitRank(out, ranks, *id, rank); }
REVATI_API int ncclCommDestroy(void *c) {
  charge(*comm(c), -1);
  delete comm(c);
  return 0;
}
REVATI_API int ncclCommFinalize(void *) { return 0; }
REVATI_API int ncclCommAbort(void *c) { return ncclCommDestroy(c); }
REVATI_API int ncclCommCount(void *c, int *count) { *count = comm(c)->group.ranks(); return 0; }
REVATI_API int ncclCommUserRank(void *c, int *rank) { *rank = comm(c)->group.rank(); return 0; }
REVATI_API int ncclCommCuDevice(void *c, int *device) { *device = comm(c)->device; return 0; }
REVATI_API int ncclCommGetAsyncError(void *, int *error) { *error = 0; return 0; }
REVATI_API int ncclCommRegister(void *, void *, size_t, void **handle) { *handle = nullptr; return 0; }
REVATI_API int ncclCommDeregister(void *, void *) { return 0; }
REVATI_API int ncclGroupStart() { return 0; }
REVATI_API int ncclGroupEnd() { return 0; }
REVATI_API const char *ncclGetErrorString(int error) { return error == 0 ? "no error" : "NCCL error (revati)"; }
REVATI_API const char *ncclGetLastError(void *) { return ""; }
REVATI_API int ncclMemAlloc(void **pointer, size_t bytes) { *pointer = device_alloc(bytes, current_device()); return *pointer ? 0 : 1; }
REVATI_API int ncclMemFree(void *pointer) { return release(pointer) ? 0 : 4; }
REVATI_API int ncclAllReduce(const void *, void *, size_t count, int type, int, void *c, void *stream) { return collective("all_reduce", count, type, c, stream); }
REVATI_API int ncclAllGather(const void *, void *, size_t count, int type, void *c, void *stream) { return collective("all_gather", count, type, c, stream); }
REVATI_API int ncclReduceScatter(const void *, void *, size_t count, int type, int, void *c, void *stream) { return collective("reduce_scatter", count, type, c, stream); }
REVATI_API int ncclBroadcast(const void *, void *, size_t count, int type, int root, void *c, void *stream) { return collective("broadcast", count, type, c, stream, {root}); }
REVATI_API int ncclBcast(void *, size_t count, int type, int root, void *c, void *stream) { return collective("broadcast", count, type, c, stream, {root}); }
REVATI_API int ncclReduce(const void *, void *, size_t count, int type, int, int, void *c, void *stream) { return collective("reduce", count, type, c, stream); }
REVATI_API int ncclSend(const void *, size_t count, int type, int peer, void *c, void *stream) { return collective("send", count, type, c, stream, {comm(c)->group.rank(), peer}); }
REVATI_API int ncclRecv(void *, size_t count, int type, int peer, void *c, void *stream) { return collective("recv", count, type, c, stream, {peer, comm(c)->group.rank()}); }
