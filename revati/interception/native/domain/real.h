// The functions that we interpose, as the next library defines them, and system calls without libc.
#pragma once
#include <dlfcn.h>
#include <sys/syscall.h>
#include <time.h>

#include <cerrno>
#include <cstdint>

#define REVATI_API extern "C" __attribute__((visibility("default")))

// -fno-threadsafe-statics: two threads may both look the same address up.
#define REAL(name)                                                                                   \
  ([] {                                                                                              \
    static auto function = reinterpret_cast<decltype(&::name)>(dlsym(RTLD_NEXT, #name));             \
    return function;                                                                                 \
  }())

namespace revati::domain {

// Returns -errno on failure, and leaves errno alone.
inline long raw(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) {
  long result;
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}
template <typename T>
long as_long(T value) { return (long)(value); }

inline int64_t to_ns(const timespec &t) {  // saturates
  return t.tv_sec >= INT64_MAX / 1000000000LL ? INT64_MAX : t.tv_sec * 1000000000LL + t.tv_nsec;
}
inline timespec to_timespec(int64_t ns) { return {ns / 1000000000LL, ns % 1000000000LL}; }

// libc's own: the next library may be librevati.so, whose clock asks us again.
inline int64_t real_clock(clockid_t id) {
  static const auto libc_clock = [] {
    void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<decltype(&::clock_gettime)>(libc ? dlsym(libc, "clock_gettime") : nullptr);
  }();
  timespec value;
  if (libc_clock) libc_clock(id, &value);
  else raw(SYS_clock_gettime, id, as_long(&value));
  return to_ns(value);
}
inline int64_t thread_cpu_ns() {
  timespec value;
  raw(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, as_long(&value));
  return to_ns(value);
}

inline int fail(int error) {
  errno = error;
  return -1;
}
inline long checked(long result) {  // from -errno to libc's convention
  return result < 0 && result > -4096 ? fail(static_cast<int>(-result)) : result;
}

}  // namespace revati::domain
