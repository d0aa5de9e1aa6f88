// Waiting for sockets: a wait that can be called off, and a timer that can be stopped. (What
// EventLoop offers for both is for waits that end by themselves.)
#pragma once

#include <chrono>
#include <coroutine>
#include <functional>
#include <memory>

namespace vise {

/// Waits for a file descriptor on the current event loop, one waiter at a time.
class FdWatch {
 public:
  enum class Until { readable, writable, either };

  /// `fd` is borrowed and must stay open until the watch is gone.
  FdWatch(int fd, Until until);
  FdWatch(const FdWatch&) = delete;
  ~FdWatch();  // nobody may be waiting (asserted)

  struct Awaiter {
    FdWatch& watch;
    bool await_ready() const noexcept { return watch.cancelled_; }
    void await_suspend(std::coroutine_handle<> waiter) const { watch.arm(waiter); }
    void await_resume() const noexcept {}
  };
  /// co_await watch.wait(): until ready, or there is an error or hang-up to be read, or cancelled.
  Awaiter wait() { return Awaiter{*this}; }

  /// What the next waits are for.
  void set(Until until);
  /// What the last wait has found; both for an error, neither if it was interrupted.
  bool readable() const { return readable_; }
  bool writable() const { return writable_; }

  /// Ends the wait, if there is one, as if for nothing. The waiter goes on through the loop.
  void interrupt();
  /// Ends the wait, and all later ones at once. The waiter goes on through the loop.
  void cancel();
  bool cancelled() const { return cancelled_; }

 private:
  struct Source;
  void arm(std::coroutine_handle<> waiter);

  Source* source_;  // a GSource
  bool cancelled_ = false;
  bool readable_ = false;
  bool writable_ = false;
};

/// Calls a function on the current event loop, again and again until stopped.
class Timer {
 public:
  Timer() = default;
  Timer(const Timer&) = delete;
  ~Timer() { stop(); }

  /// `function` must not throw; it may stop the timer or start it anew. At least 1 ms.
  void start(std::chrono::milliseconds interval, std::function<void()> function);
  void stop();
  bool running() const { return source_ != nullptr; }

 private:
  void* source_ = nullptr;  // a GSource
};

}  // namespace vise
