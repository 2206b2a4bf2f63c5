// Collectives of several processes: when each rank's GPU is ready for them.
//
// In a domain, the ranks of a communicator meet in the domain's shared memory, by communicator and sequence
// number.  Outside of one there is nobody to meet, and a collective starts when its own rank is ready.
#pragma once
#include <cstdint>
#include <unordered_map>

#include "core.h"

namespace revati {

struct Lane;  // a sequence of meetings

// One rank's part in one meeting.
struct Meeting {
  Lane *lane = nullptr;      // null: nobody to meet
  uint64_t sequence = 0;
  int rank = 0, ranks = 1;
  int source = -1;           // only this rank's readiness counts, -1: everyone's
  bool posts() const { return source < 0 || source == rank; }
  bool waits() const { return source != rank; }
};

// A communicator, as its rank in this process sees it.
class REVATI_CORE Group {
 public:
  Group(uint64_t id, int rank, int ranks) : id_(id), rank_(rank), ranks_(ranks) {}
  int ranks() const { return ranks_; }
  int rank() const { return rank_; }
  Meeting meet(Roles roles);  // the next one

 private:
  uint64_t id_, sequence_ = 0;
  int rank_, ranks_;
  std::unordered_map<int, uint64_t> passed_;
};

void post(const Meeting &meeting, ns_t ready);
ns_t latest(const Meeting &meeting);    // when the last of those that count is ready; -1: not known yet
void wait_for(const Meeting &meeting);  // blocks until it is known; hold no lock

// The group whose kernels of vLLM's custom all-reduce carry no communicator.
Group *all_reduce_group();

}  // namespace revati
