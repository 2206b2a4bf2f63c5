#include "inbox.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "real.h"

namespace revati::domain {
namespace {

constexpr int64_t kPatience = 30000000000;  // for a monitor that is still starting
constexpr int kBatch = 64;

int inbox = -1;
int requests = -1;  // the monitor's

// A name without a file; the creation's time tells domains of different containers apart.
socklen_t address_of_monitor(sockaddr_un &address) {
  std::memset(&address, 0, sizeof address);
  address.sun_family = AF_UNIX;
  const int length = snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "revati-domain-%lx-%lx",
                              static_cast<unsigned long>(segment->epoch_real), static_cast<unsigned long>(segment->epoch_mono));
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
}

struct Passing {  // a message of one byte that carries a descriptor
  char byte = 'i';
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{nullptr, 0, &part, 1, control, sizeof control, 0};
};

void pass(int connection) {
  Passing passing;
  cmsghdr *head = CMSG_FIRSTHDR(&passing.message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof inbox);
  std::memcpy(CMSG_DATA(head), &inbox, sizeof inbox);
  raw(SYS_sendmsg, connection, as_long(&passing.message), MSG_NOSIGNAL | MSG_DONTWAIT);
}

int receive_inbox(int connection) {
  Passing passing;
  if (raw(SYS_recvmsg, connection, as_long(&passing.message), MSG_CMSG_CLOEXEC) != 1) return -1;
  const cmsghdr *head = CMSG_FIRSTHDR(&passing.message);
  if (!head || head->cmsg_type != SCM_RIGHTS) return -1;
  int file;
  std::memcpy(&file, CMSG_DATA(head), sizeof file);
  return move_high(file);
}

int ask_monitor() {
  sockaddr_un address;
  const socklen_t length = address_of_monitor(address);
  const int connection = static_cast<int>(raw(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (connection < 0) return -1;
  const timeval limit{5, 0};  // a monitor that has died has closed its end before
  raw(SYS_setsockopt, connection, SOL_SOCKET, SO_RCVTIMEO, as_long(&limit), sizeof limit);
  const int file = raw(SYS_connect, connection, as_long(&address), length) == 0 ? receive_inbox(connection) : -1;
  raw(SYS_close, connection);
  return file;
}

bool same_user(int connection) {
  ucred peer{};
  socklen_t length = sizeof peer;
  return raw(SYS_getsockopt, connection, SOL_SOCKET, SO_PEERCRED, as_long(&peer), as_long(&length)) == 0 &&
         (peer.uid == geteuid() || peer.uid == 0);
}

}  // namespace

bool fetch_inbox() {
  const int64_t begin = real_now_ns();
  while (!segment->ended && real_now_ns() - begin < kPatience) {
    inbox = ask_monitor();
    if (inbox >= 0) return true;
    const timespec pause{0, 1000000};
    raw(SYS_nanosleep, as_long(&pause), 0);
  }
  return false;
}

int inbox_requests() {
  if (requests >= 0) return requests;
  inbox = static_cast<int>(raw(SYS_epoll_create1, EPOLL_CLOEXEC));
  requests = static_cast<int>(raw(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address;
  const socklen_t length = address_of_monitor(address);
  raw(SYS_bind, requests, as_long(&address), length);
  raw(SYS_listen, requests, kSlots);
  return requests;
}

int inbox_descriptor() { return inbox; }
bool keeps_inbox(int file) { return file >= 0 && file == inbox; }

void serve_inbox() {
  for (long connection; (connection = raw(SYS_accept4, requests, 0, 0, SOCK_CLOEXEC)) >= 0; raw(SYS_close, connection))
    if (same_user(static_cast<int>(connection))) pass(static_cast<int>(connection));
}

bool collect() {
  Domain &d = *segment;
  bool any = false;
  for (long count = kBatch; count == kBatch;) {
    epoll_event events[kBatch];
    count = raw(SYS_epoll_pwait, inbox, as_long(events), kBatch, 0, 0, 8);
    for (long i = 0; i < count; ++i) {
      const int index = static_cast<int>(events[i].data.u64 & UINT32_MAX);
      Slot &slot = d.slots[index];
      if (slot.generation != events[i].data.u64 >> 32 || !slot.expects || slot.woken) continue;
      slot.woken = 1;
      any = true;
      if (slot.state != State::kBlocked || slot.kind != Kind::kMessage) continue;  // about to wait
      slot.state = State::kReady;
      set_key(index, std::max({slot.time, d.last_send.load(), d.now.load()}));
    }
  }
  return any;
}

Expectation::Expectation(Thread *thread, const char *call, uint64_t object) : thread_(thread) {
  Slot &slot = *thread->slot;
  set_call(slot, call, object);
  slot.woken = 0;
  slot.expects.store(1, std::memory_order_release);
}

Expectation::~Expectation() {
  thread_->slot->expects.store(0);
  for (int i = 0; i < count_; ++i) raw(SYS_epoll_ctl, inbox, EPOLL_CTL_DEL, files_[i]);
}

bool Expectation::add(int file, uint32_t events) {
  if (count_ == kMostExpected) return false;
  epoll_event event{};
  event.events = events | EPOLLONESHOT;
  event.data.u64 = static_cast<uint64_t>(thread_->slot->generation) << 32 | static_cast<uint32_t>(thread_->index);
  if (raw(SYS_epoll_ctl, inbox, EPOLL_CTL_ADD, file, as_long(&event)) < 0) return false;
  files_[count_++] = file;
  return true;
}

}  // namespace revati::domain
