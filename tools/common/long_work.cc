#include "tools/common/long_work.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "vise/error.h"
#include "vise/sync.h"

namespace vise::tools {

namespace {

// Without symbolic links: it is the file that has to go.
void remove_regular_file(const std::string& path) {
  struct stat status = {};
  if (stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return;
  char* const resolved = realpath(path.c_str(), nullptr);
  if (resolved != nullptr) (void)unlink(resolved);
  std::free(resolved);
}

int ready_when_any_is(int a, int b) {
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  for (const int fd : {a, b}) {
    epoll_event event = {};
    event.events = EPOLLIN;
    (void)epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
  }
  return epoll;
}

}  // namespace

void die_of(int signal) {
  std::signal(signal, SIG_DFL);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  std::fflush(stdout);
  (void)pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  std::raise(signal);
}

LongWork::LongWork(Progress::Options progress, OnInterrupt on_interrupt)
    : progress_(std::move(progress)), on_interrupt_(on_interrupt) {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGUSR1);
  if (on_interrupt != OnInterrupt::die) {
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
      // What the caller has told the program to ignore (nohup) stays ignored.
      struct sigaction action = {};
      const bool known = sigaction(signal, nullptr, &action) == 0;
      if (!known || action.sa_handler != SIG_IGN) sigaddset(&signals_, signal);
    }
  }
  (void)pthread_sigmask(SIG_BLOCK, &signals_, &old_mask_);
  signal_fd_ = signalfd(-1, &signals_, SFD_NONBLOCK | SFD_CLOEXEC);
  end_fd_ = eventfd(0, EFD_CLOEXEC);
  ready_fd_ = ready_when_any_is(signal_fd_, end_fd_);
}

LongWork::~LongWork() {
  for (const int fd : {ready_fd_, end_fd_, signal_fd_}) {
    if (fd >= 0) close(fd);
  }
  (void)pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr);
}

void LongWork::show(const CopyProgress& state) {
  const auto total = static_cast<double>(std::max<std::uint64_t>(1, state.total));
  progress_.set(static_cast<double>(state.done) / total, state.data_moved);
}

void LongWork::checkpoint() const {
  if (interrupted_by_ != 0) throw Error::system_error(ECANCELED);
}

void LongWork::receive(int signal) {
  if (signal == SIGUSR1) {
    progress_.report();
    return;
  }
  if (!unfinished_.empty()) remove_regular_file(unfinished_);
  const bool at_once = !unfinished_.empty() || on_interrupt_ == OnInterrupt::remove;
  if (at_once || interrupted_by_ != 0) die_of(signal);
  interrupted_by_ = signal;
  control_.cancel();
}

Task<void> LongWork::listen() {
  EventLoop& loop = EventLoop::current();
  for (;;) {
    co_await loop.readable(ready_fd_);
    signalfd_siginfo information;
    while (read(signal_fd_, &information, sizeof information) == sizeof information) {
      receive(static_cast<int>(information.ssi_signo));
    }
    pollfd end{end_fd_, POLLIN, 0};
    if (poll(&end, 1, 0) > 0) co_return;
  }
}

Task<int> LongWork::run(Task<int> body) {
  TaskScope listener;
  listener.spawn(listen());
  int result = 0;
  std::exception_ptr failure;
  try {
    result = co_await std::move(body);
  } catch (...) {
    failure = std::current_exception();
  }
  unfinished_.clear();
  (void)eventfd_write(end_fd_, 1);
  co_await listener.join();
  const bool unfinished = failure || on_interrupt_ == OnInterrupt::finish;
  if (unfinished && interrupted_by_ != 0) throw Interrupted(interrupted_by_);
  if (failure) std::rethrow_exception(failure);
  co_return result;
}

}  // namespace vise::tools
