#include "rendezvous.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>

// Exports of librevati_domain.so, which only the members of a domain load.
extern "C" {
__attribute__((weak)) void *revati_shared_area(void);
__attribute__((weak)) void revati_queue_wait(uint64_t queue, int (*ready)(void *), void *context, const char *call);
__attribute__((weak)) void revati_queue_wake(uint64_t queue);
}

namespace revati {

namespace {
constexpr int kMaxRanks = 8, kDepth = 128, kLanes = 112;
constexpr uint64_t kQueueTag = 0xC011EC7100000000ULL;
constexpr size_t kAreaBytes = 2 << 20;
}  // namespace

struct Lane {
  std::atomic<uint64_t> id;
  struct Entry {
    std::atomic<uint64_t> posted[kMaxRanks];  // sequence number + 1
    std::atomic<ns_t> ready[kMaxRanks];
  } ring[kDepth];
};

namespace {

struct Area { Lane lanes[kLanes]; };
static_assert(sizeof(Area) <= kAreaBytes);

Area *area() {
  static Area *const shared = revati_shared_area ? static_cast<Area *>(revati_shared_area()) : nullptr;
  return shared;
}

[[noreturn]] void give_up(const char *why) {
  std::fprintf(stderr, "revati: collective: %s\n", why);
  std::abort();
}

Lane *lane_of(uint64_t id) {
  for (uint64_t i = 0; i < kLanes; ++i) {
    Lane &lane = area()->lanes[(id + i) % kLanes];
    uint64_t expected = 0;
    if (lane.id.compare_exchange_strong(expected, id) || expected == id) return &lane;
  }
  give_up("too many communicators");
}

uint64_t queue_of(const Lane *lane) {
  return kQueueTag + static_cast<uint64_t>(lane - area()->lanes);
}

Group *custom_all_reduce = nullptr;

}  // namespace

Meeting Group::meet(Roles roles) {
  if (ranks_ < 2 || !area()) return {};
  if (ranks_ > kMaxRanks) give_up("more than 8 ranks");
  if (roles.destination < 0) return {lane_of(id_), sequence_++, rank_, ranks_, roles.source};
  const int way = roles.source * kMaxRanks + roles.destination;
  Lane *lane = lane_of(id_ ^ (0x9E3779B97F4A7C15ULL * static_cast<uint64_t>(way + 1)));
  return {lane, passed_[way]++, rank_, ranks_, roles.source};
}

void post(const Meeting &meeting, ns_t ready) {
  Lane::Entry &entry = meeting.lane->ring[meeting.sequence % kDepth];
  entry.ready[meeting.rank].store(ready, std::memory_order_relaxed);
  entry.posted[meeting.rank].store(meeting.sequence + 1, std::memory_order_release);
  revati_queue_wake(queue_of(meeting.lane));
}

ns_t latest(const Meeting &meeting) {
  const Lane::Entry &entry = meeting.lane->ring[meeting.sequence % kDepth];
  ns_t last = 0;
  for (int rank = 0; rank < meeting.ranks; ++rank) {
    if (meeting.source >= 0 && rank != meeting.source) continue;
    const uint64_t posted = entry.posted[rank].load(std::memory_order_acquire);
    if (posted < meeting.sequence + 1) return -1;
    if (posted > meeting.sequence + 1) give_up("a rank is too far ahead of another");
    last = std::max(last, entry.ready[rank].load(std::memory_order_relaxed));
  }
  return last;
}

void wait_for(const Meeting &meeting) {
  const auto known = [](void *context) -> int { return latest(*static_cast<const Meeting *>(context)) >= 0; };
  Meeting mine = meeting;
  revati_queue_wait(queue_of(meeting.lane), known, &mine, "collective");
}

Group *all_reduce_group() { return custom_all_reduce; }

}  // namespace revati

// `id` is the same in all processes of the group and differs between groups.
REVATI_API void revati_set_all_reduce_group(uint64_t id, int rank, int ranks) {
  revati::custom_all_reduce = ranks > 1 ? new revati::Group(id, rank, ranks) : nullptr;
}
