// Files in shared memory that members create: what a killed one leaves behind goes with the domain.
#include <fcntl.h>
#include <semaphore.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "protocol.h"
#include "real.h"

namespace revati::domain {
namespace {

constexpr char kFolder[] = "/dev/shm/";
constexpr int kFolderLength = sizeof kFolder - 1;

int find(const char *name) {
  for (int i = 0; i < kFiles; ++i)
    if (!std::strcmp(segment->files[i], name)) return i;
  return kNobody;
}

// Before a call that creates the file if it isn't there; only then it is this domain's.
void will_create(const char *prefix, const char *name) {
  if (!segment || !domain) return;
  while (*name == '/') ++name;
  char file[kFileName], path[kFolderLength + kFileName];
  if (std::snprintf(file, sizeof file, "%s%s", prefix, name) >= kFileName) return;
  std::snprintf(path, sizeof path, "%s%s", kFolder, file);
  if (raw(SYS_faccessat, AT_FDCWD, as_long(path), F_OK) == 0) return;
  Guard guard;
  lock();
  const int entry = find(file) == kNobody ? find("") : kNobody;
  if (entry != kNobody) std::strcpy(segment->files[entry], file);
  unlock();
}

void removed(const char *prefix, const char *name) {
  if (!segment) return;
  while (*name == '/') ++name;
  char file[kFileName];
  if (std::snprintf(file, sizeof file, "%s%s", prefix, name) >= kFileName) return;
  Guard guard;
  lock();
  if (const int entry = find(file); entry != kNobody) segment->files[entry][0] = 0;
  unlock();
}

void will_open(const char *path, int flags) {
  if (flags & O_CREAT && path && !std::strncmp(path, kFolder, kFolderLength)) will_create("", path + kFolderLength);
}

mode_t mode_of(int flags, va_list list) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; }

}  // namespace
}  // namespace revati::domain

using namespace revati::domain;

REVATI_API int shm_open(const char *name, int flags, mode_t mode) {
  if (flags & O_CREAT) will_create("", name);
  return REAL(shm_open)(name, flags, mode);
}
REVATI_API int shm_unlink(const char *name) {
  removed("", name);
  return REAL(shm_unlink)(name);
}

REVATI_API sem_t *sem_open(const char *name, int flags, ...) {
  if (!(flags & O_CREAT)) return REAL(sem_open)(name, flags);
  va_list list;
  va_start(list, flags);
  const mode_t mode = va_arg(list, mode_t);
  const unsigned value = va_arg(list, unsigned);
  va_end(list);
  will_create("sem.", name);
  return REAL(sem_open)(name, flags, mode, value);
}
REVATI_API int sem_unlink(const char *name) noexcept {
  removed("sem.", name);
  return REAL(sem_unlink)(name);
}

#define REVATI_OPEN(NAME)                            \
  REVATI_API int NAME(const char *path, int flags, ...) { \
    va_list list;                                    \
    va_start(list, flags);                           \
    const mode_t mode = mode_of(flags, list);        \
    va_end(list);                                    \
    will_open(path, flags);                          \
    return REAL(NAME)(path, flags, mode);            \
  }
REVATI_OPEN(open)
REVATI_OPEN(open64)

#define REVATI_OPEN_AT(NAME)                                      \
  REVATI_API int NAME(int folder, const char *path, int flags, ...) { \
    va_list list;                                                 \
    va_start(list, flags);                                        \
    const mode_t mode = mode_of(flags, list);                     \
    va_end(list);                                                 \
    will_open(path, flags);                                       \
    return REAL(NAME)(folder, path, flags, mode);                 \
  }
REVATI_OPEN_AT(openat)
REVATI_OPEN_AT(openat64)

// The launcher's side: removes what members have left.
REVATI_API void revati_domain_remove_files() {
  for (int i = 0; i < kFiles; ++i) {
    if (!segment->files[i][0]) continue;
    char path[kFolderLength + kFileName];
    std::snprintf(path, sizeof path, "%s%s", kFolder, segment->files[i]);
    raw(SYS_unlink, as_long(path));
    segment->files[i][0] = 0;
  }
}
