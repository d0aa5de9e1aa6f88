// The event loop that a graph of nodes lives on: a GLib main context underneath, into which I/O
// completions, worker results, timers and sockets enter.
#pragma once

#include <chrono>
#include <concepts>
#include <coroutine>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "vise/task.h"

namespace vise {

/// One per thread that runs coroutines. All members but post() are for the owning thread.
class EventLoop {
 public:
  /// Owns a new GLib main context; becomes the calling thread's current() loop until destroyed.
  EventLoop();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  /// The loop of the calling thread. There must be one (asserted).
  static EventLoop& current();

  /// Resumes `waiter` from the loop, after everything already scheduled. Never resumes inline, so
  /// hand-offs between coroutines do not nest.
  void schedule(std::coroutine_handle<> waiter);

  /// Runs `function` on the loop's thread. The one member that any thread may call. The function
  /// must not throw.
  void post(std::function<void()> function);

  /// Runs the loop until `task` has finished; gives its value or throws its exception. The bridge
  /// between main() and coroutines; not to be called from inside the loop.
  template <class T>
  T run(Task<T> task);

  /// Completes after `duration`; at once, but not inline, for zero.
  Task<void> sleep(std::chrono::nanoseconds duration);

  /// Lets everything that is ready now run first: co_await loop.yield().
  Task<void> yield();

  /// Completes when `fd` is readable / writable (or has an error or hang-up to be read).
  Task<void> readable(int fd);
  Task<void> writable(int fd);

  /// The GMainContext*, for code that includes GLib itself.
  void* native_context() const;

  class Impl;
  Impl& impl() { return *impl_; }

 private:
  void run_until(const bool& done);

  std::unique_ptr<Impl> impl_;
};

namespace task_detail {

// A coroutine that nobody awaits: starts at once and destroys itself. Its body must not throw.
struct Detached {
  struct promise_type {
    static void* operator new(std::size_t size) { return allocate_frame(size); }
    static void operator delete(void* frame, std::size_t size) noexcept { free_frame(frame, size); }
    Detached get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { std::terminate(); }
  };
};

template <class T>
struct RunResult {
  std::optional<T> value;
  std::exception_ptr exception;
  bool done = false;
};
template <>
struct RunResult<void> {
  std::exception_ptr exception;
  bool done = false;
};

template <class T>
Detached run_into(Task<T> task, RunResult<T>& result) {
  try {
    if constexpr (std::is_void_v<T>) {
      co_await std::move(task);
    } else {
      result.value.emplace(co_await std::move(task));
    }
  } catch (...) {
    result.exception = std::current_exception();
  }
  result.done = true;
}

}  // namespace task_detail

template <class T>
T EventLoop::run(Task<T> task) {
  task_detail::RunResult<T> result;
  task_detail::run_into(std::move(task), result);
  run_until(result.done);
  if (result.exception) std::rethrow_exception(result.exception);
  if constexpr (!std::is_void_v<T>) return std::move(*result.value);
}

}  // namespace vise
