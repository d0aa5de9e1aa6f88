// The event loop on a GLib main context. Coroutines that are ready sit in a plain queue that one
// GSource empties; other threads reach the loop through post(), batched behind one wake-up.
#include "vise/event_loop.h"

#include <glib.h>

#include <cassert>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

namespace vise {

namespace {

// The loop of this thread. Awaitables resume on the loop they were suspended on, and a pointer
// through every one of them would only ever hold this value.
thread_local EventLoop* current_loop = nullptr;

}  // namespace

class EventLoop::Impl {
 public:
  Impl() : context_(g_main_context_new()) {
    static GSourceFuncs functions = {prepare, check, dispatch, nullptr, nullptr, nullptr};
    source_ = reinterpret_cast<ReadySource*>(g_source_new(&functions, sizeof(ReadySource)));
    source_->impl = this;
    g_source_set_priority(&source_->base, G_PRIORITY_DEFAULT);
    g_source_attach(&source_->base, context_);
  }

  ~Impl() {
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

struct SourceWait {
  GMainContext* context;
  GSource* source;

  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    g_source_set_callback(source, resume, handle.address(), nullptr);
    g_source_attach(source, context);
    g_source_unref(source);
  }
  void await_resume() const noexcept {}

  static gboolean resume(gpointer address) noexcept {
    EventLoop::current().schedule(std::coroutine_handle<>::from_address(address));
    return G_SOURCE_REMOVE;
  }
};

struct FdWait {
  GMainContext* context;
  int fd;
  GIOCondition condition;

  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    GSource* source = g_source_new(unix_fd_functions(), sizeof(GSource));
    g_source_add_unix_fd(source, fd,
                         static_cast<GIOCondition>(condition | G_IO_ERR | G_IO_HUP));
    g_source_set_callback(source, SourceWait::resume, handle.address(), nullptr);
    g_source_attach(source, context);
    g_source_unref(source);
  }
  void await_resume() const noexcept {}

  static GSourceFuncs* unix_fd_functions() {
    static GSourceFuncs functions = {nullptr, nullptr,
                                     [](GSource*, GSourceFunc callback, gpointer data) -> gboolean {
                                       return callback(data);
                                     },
                                     nullptr, nullptr, nullptr};
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
  // GLib counts milliseconds in its timeouts; the ready time of a source has microseconds.
  GSource* source = g_timeout_source_new(0);
  g_source_set_ready_time(source, g_get_monotonic_time() + (duration.count() + 999) / 1000);
  co_await SourceWait{impl_->context(), source};
}

Task<void> EventLoop::yield() { co_await Yield{}; }

Task<void> EventLoop::readable(int fd) { co_await FdWait{impl_->context(), fd, G_IO_IN}; }
Task<void> EventLoop::writable(int fd) { co_await FdWait{impl_->context(), fd, G_IO_OUT}; }

}  // namespace vise
