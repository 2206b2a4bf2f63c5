// The clock that librevati.so uses in a process of a domain; it looks for revati_domain_clock() weakly.
#pragma once
#include <cstdint>

namespace revati {

struct DomainClock {
  int64_t (*now)();
  void (*wait_until)(int64_t when);
  void (*spend)(int64_t ns);          // host time passes for the calling thread
  void (*charge)(int64_t ns);         // likewise, and whoever is due meanwhile runs before it returns
  void (*exclude_cpu)(bool exclude);  // nestable: CPU time is not charged meanwhile
};

}  // namespace revati
