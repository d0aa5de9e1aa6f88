// The event loop on a GLib main context. Coroutines that are ready sit in a plain queue that one
// GSource empties; other threads reach the loop through post(), batched behind one wake-up; timers
// share one timerfd, since GLib's own count in milliseconds.
#include "vise/event_loop.h"

#include <glib.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <deque>
#include <functional>
#include <mutex>
#include <queue>
#include <utility>
#include <vector>

#include "vise/error.h"

namespace vise {

namespace {

// The loop of this thread. Awaitables resume on the loop they were suspended on, and a pointer
// through every one of them would only ever hold this value.
thread_local EventLoop* current_loop = nullptr;

using Clock = std::chrono::steady_clock;  // CLOCK_MONOTONIC

// Coroutines that wait for a time, as a source of the main context.
class Timers {
 public:
  explicit Timers(GMainContext* context)
      : fd_(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) {
    if (fd_ < 0) throw Error::system_error(errno, "timerfd");
    static GSourceFuncs functions = {prepare, check, dispatch, nullptr, nullptr, nullptr};
    source_ = reinterpret_cast<TimerSource*>(g_source_new(&functions, sizeof(TimerSource)));
    source_->timers = this;
    g_source_add_unix_fd(&source_->base, fd_, G_IO_IN);
    g_source_attach(&source_->base, context);
  }
  Timers(const Timers&) = delete;
  ~Timers() {
    g_source_destroy(&source_->base);
    g_source_unref(&source_->base);
    ::close(fd_);
  }

  void add(Clock::time_point when, std::coroutine_handle<> waiter) {
    waiting_.push({when, next_number_++, waiter});
  }

 private:
  struct Timer {
    Clock::time_point when;
    std::uint64_t number;  // of timers of the same time the older one comes first
    std::coroutine_handle<> waiter;
    bool operator>(const Timer& other) const {
      return when != other.when ? when > other.when : number > other.number;
    }
  };
  struct TimerSource {
    GSource base;
    Timers* timers;
  };

  bool is_due() const { return !waiting_.empty() && waiting_.top().when <= Clock::now(); }

  // Sets the descriptor to the next time, unless it is set to that already.
  void arm() {
    const auto when = waiting_.empty() ? Clock::time_point() : waiting_.top().when;
    if (when == armed_) return;
    const auto since_boot = when.time_since_epoch();
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since_boot);
    const std::chrono::nanoseconds rest = since_boot - seconds;
    const itimerspec setting = {.it_interval = {}, .it_value = {seconds.count(), rest.count()}};
    timerfd_settime(fd_, TFD_TIMER_ABSTIME, &setting, nullptr);
    armed_ = when;
  }

  void run_due() noexcept {
    const auto now = Clock::now();
    // What they add is not due now, or is for the next round.
    for (std::size_t count = waiting_.size(); count > 0 && waiting_.top().when <= now; --count) {
      const auto waiter = waiting_.top().waiter;
      waiting_.pop();
      waiter.resume();
    }
  }

  static gboolean prepare(GSource* source, gint* timeout) {
    Timers& timers = *reinterpret_cast<TimerSource*>(source)->timers;
    *timeout = -1;
    if (timers.is_due()) return TRUE;
    timers.arm();
    return FALSE;
  }
  static gboolean check(GSource* source) {
    return reinterpret_cast<TimerSource*>(source)->timers->is_due();
  }
  static gboolean dispatch(GSource* source, GSourceFunc, gpointer) {
    reinterpret_cast<TimerSource*>(source)->timers->run_due();
    return G_SOURCE_CONTINUE;
  }

  int fd_;
  TimerSource* source_;
  Clock::time_point armed_;  // 0: not at all
  std::priority_queue<Timer, std::vector<Timer>, std::greater<>> waiting_;
  std::uint64_t next_number_ = 0;
};

}  // namespace

class EventLoop::Impl {
 public:
  Impl() : context_(g_main_context_new()), timers_(std::make_unique<Timers>(context_)) {
    static GSourceFuncs functions = {prepare, check, dispatch, nullptr, nullptr, nullptr};
    source_ = reinterpret_cast<ReadySource*>(g_source_new(&functions, sizeof(ReadySource)));
    source_->impl = this;
    g_source_set_priority(&source_->base, G_PRIORITY_DEFAULT);
    g_source_attach(&source_->base, context_);
  }

  ~Impl() {
    timers_.reset();
    g_source_destroy(&source_->base);
    g_source_unref(&source_->base);
    g_main_context_unref(context_);
  }

  void schedule(std::coroutine_handle<> waiter) { ready_.push_back(waiter); }

  void post(std::function<void()> function) {
    bool wake = false;
    {
      std::lock_guard<std::mutex> guard(mutex_);
      wake = posted_.empty();
      posted_.push_back(std::move(function));
    }
    if (wake) g_main_context_wakeup(context_);
  }

  void iterate() { g_main_context_iteration(context_, TRUE); }
  GMainContext* context() const { return context_; }
  Timers& timers() { return *timers_; }

 private:
  struct ReadySource {
    GSource base;
    Impl* impl;
  };

  bool has_work() {
    if (!ready_.empty()) return true;
    std::lock_guard<std::mutex> guard(mutex_);
    return !posted_.empty();
  }

  void run_ready() noexcept {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      running_.swap(posted_);
    }
    for (auto& function : running_) function();
    running_.clear();
    // Only those ready now: what they schedule waits for the next round, so that file descriptors
    // and timers are not starved.
    for (std::size_t count = ready_.size(); count > 0; --count) {
      const auto waiter = ready_.front();
      ready_.pop_front();
      waiter.resume();
    }
  }

  static gboolean prepare(GSource* source, gint* timeout) {
    const bool work = reinterpret_cast<ReadySource*>(source)->impl->has_work();
    *timeout = work ? 0 : -1;
    return work;
  }
  static gboolean check(GSource* source) {
    return reinterpret_cast<ReadySource*>(source)->impl->has_work();
  }
  static gboolean dispatch(GSource* source, GSourceFunc, gpointer) {
    reinterpret_cast<ReadySource*>(source)->impl->run_ready();
    return G_SOURCE_CONTINUE;
  }

  GMainContext* context_;
  std::unique_ptr<Timers> timers_;
  ReadySource* source_;
  std::deque<std::coroutine_handle<>> ready_;
  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;  // guarded by mutex_
  std::vector<std::function<void()>> running_;
};

EventLoop::EventLoop() : impl_(std::make_unique<Impl>()) {
  assert(current_loop == nullptr && "one event loop per thread");
  current_loop = this;
  g_main_context_push_thread_default(impl_->context());
}

EventLoop::~EventLoop() {
  g_main_context_pop_thread_default(impl_->context());
  current_loop = nullptr;
}

EventLoop& EventLoop::current() {
  assert(current_loop != nullptr);
  return *current_loop;
}

void EventLoop::schedule(std::coroutine_handle<> waiter) { impl_->schedule(waiter); }
void EventLoop::post(std::function<void()> function) { impl_->post(std::move(function)); }
void* EventLoop::native_context() const { return impl_->context(); }

void EventLoop::run_until(const bool& done) {
  while (!done) impl_->iterate();
}

namespace {

struct TimerWait {
  Timers& timers;
  Clock::time_point when;

  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const { timers.add(when, handle); }
  void await_resume() const noexcept {}
};

struct FdWait {
  GMainContext* context;
  int fd;
  GIOCondition condition;

  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    GSource* source = g_source_new(unix_fd_functions(), sizeof(GSource));
    g_source_add_unix_fd(source, fd, static_cast<GIOCondition>(condition | G_IO_ERR | G_IO_HUP));
    g_source_set_callback(source, resume, handle.address(), nullptr);
    g_source_attach(source, context);
    g_source_unref(source);
  }
  void await_resume() const noexcept {}

  static gboolean resume(gpointer address) noexcept {
    std::coroutine_handle<>::from_address(address).resume();
    return G_SOURCE_REMOVE;
  }
  static GSourceFuncs* unix_fd_functions() {
    static GSourceFuncs functions = {
        nullptr,
        nullptr,
        [](GSource*, GSourceFunc callback, gpointer data) -> gboolean { return callback(data); },
        nullptr,
        nullptr,
        nullptr};
    return &functions;
  }
};

struct Yield {
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const {
    EventLoop::current().schedule(handle);
  }
  void await_resume() const noexcept {}
};

}  // namespace

Task<void> EventLoop::sleep(std::chrono::nanoseconds duration) {
  if (duration.count() <= 0) {
    co_await Yield{};
    co_return;
  }
  const auto now = Clock::now();
  const auto longest = Clock::time_point::max() - now;  // centuries, where `duration` is absurd
  co_await TimerWait{impl_->timers(), now + std::min<std::chrono::nanoseconds>(duration, longest)};
}

Task<void> EventLoop::yield() { co_await Yield{}; }

Task<void> EventLoop::readable(int fd) { co_await FdWait{impl_->context(), fd, G_IO_IN}; }
Task<void> EventLoop::writable(int fd) { co_await FdWait{impl_->context(), fd, G_IO_OUT}; }

}  // namespace vise
