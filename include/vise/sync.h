// Awaitable synchronisation between the coroutines of one event loop, and structured concurrency.
// Nothing here is thread-safe: everything belongs to one loop.
#pragma once

#include <coroutine>
#include <cstdint>
#include <deque>
#include <exception>
#include <utility>
#include <vector>

#include "vise/event_loop.h"
#include "vise/task.h"

namespace vise {

/// Coroutines waiting for a condition, first in first out. The base of the others.
/// Wake-ups go through the event loop, never inline.
class WaitQueue {
 public:
  WaitQueue() = default;
  WaitQueue(const WaitQueue&) = delete;
  WaitQueue& operator=(const WaitQueue&) = delete;

  struct Waiter {
    WaitQueue& queue;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) const { queue.waiters_.push_back(handle); }
    void await_resume() const noexcept {}
  };
  /// co_await queue.wait(): until a later wake_one() or wake_all(). The condition must be tested
  /// again afterwards.
  Waiter wait() { return Waiter{*this}; }
  /// False if nobody waits.
  bool wake_one();
  void wake_all();
  bool empty() const { return waiters_.empty(); }
  std::size_t size() const { return waiters_.size(); }

 private:
  std::deque<std::coroutine_handle<>> waiters_;
};

/// A mutex whose lock() suspends. Fair: first come, first served.
class AsyncMutex {
 public:
  class [[nodiscard]] Guard {
   public:
    Guard() = default;
    explicit Guard(AsyncMutex& mutex) : mutex_(&mutex) {}
    Guard(Guard&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
    Guard& operator=(Guard&& other) noexcept {
      if (this != &other) {
        unlock();
        mutex_ = std::exchange(other.mutex_, nullptr);
      }
      return *this;
    }
    ~Guard() { unlock(); }
    void unlock() {
      if (mutex_ != nullptr) std::exchange(mutex_, nullptr)->unlock();
    }

   private:
    AsyncMutex* mutex_ = nullptr;
  };

  struct Awaiter {
    AsyncMutex& mutex;
    bool await_ready() const noexcept { return !std::exchange(mutex.locked_, true); }
    void await_suspend(std::coroutine_handle<> handle) const { mutex.waiters_.push_back(handle); }
    Guard await_resume() const noexcept { return Guard(mutex); }
  };
  /// AsyncMutex::Guard guard = co_await mutex.lock();
  Awaiter lock() { return Awaiter{*this}; }
  bool locked() const { return locked_; }

 private:
  void unlock();

  bool locked_ = false;
  std::deque<std::coroutine_handle<>> waiters_;  // the lock is handed over, never dropped between
};

/// A counting semaphore: acquire(n) waits until n units are free. Fair, so that a large request is
/// not starved by small ones.
class AsyncSemaphore {
 public:
  explicit AsyncSemaphore(std::uint64_t units) : free_(units), total_(units) {}
  AsyncSemaphore(const AsyncSemaphore&) = delete;

  struct Awaiter {
    AsyncSemaphore& semaphore;
    std::uint64_t units;
    bool await_ready() const noexcept;
    void await_suspend(std::coroutine_handle<> handle) const;
    void await_resume() const noexcept {}
  };
  /// More units than there are in total wait for all of them and take all.
  Awaiter acquire(std::uint64_t units = 1) {
    return Awaiter{*this, units < total_ ? units : total_};
  }
  void release(std::uint64_t units = 1);
  std::uint64_t available() const { return free_; }
  std::uint64_t total() const { return total_; }

 private:
  struct Entry {
    std::coroutine_handle<> handle;
    std::uint64_t units;
  };
  std::uint64_t free_;
  std::uint64_t total_;
  std::deque<Entry> waiters_;
};

/// A one-shot event: set() lets every present and future waiter through.
class AsyncEvent {
 public:
  struct Awaiter {
    AsyncEvent& event;
    bool await_ready() const noexcept { return event.set_; }
    void await_suspend(std::coroutine_handle<> handle) const { event.waiters_.push_back(handle); }
    void await_resume() const noexcept {}
  };
  Awaiter wait() { return Awaiter{*this}; }
  void set();
  bool is_set() const { return set_; }

 private:
  bool set_ = false;
  std::vector<std::coroutine_handle<>> waiters_;
};

/// A queue between coroutines. pop() waits for an element; push() waits while `capacity` elements
/// are queued; close() makes pop() return nothing once the queue is empty.
template <class T>
class AsyncQueue {
 public:
  explicit AsyncQueue(std::size_t capacity = SIZE_MAX) : capacity_(capacity) {}

  Task<void> push(T value) {
    while (items_.size() >= capacity_ && !closed_) co_await space_.wait();
    assert(!closed_);
    items_.push_back(std::move(value));
    elements_.wake_one();
  }
  /// For queues without a capacity.
  void push_now(T value) {
    items_.push_back(std::move(value));
    elements_.wake_one();
  }
  Task<std::optional<T>> pop() {
    while (items_.empty() && !closed_) co_await elements_.wait();
    if (items_.empty()) co_return std::nullopt;
    std::optional<T> value(std::move(items_.front()));
    items_.pop_front();
    space_.wake_one();
    co_return value;
  }
  void close() {
    closed_ = true;
    elements_.wake_all();
    space_.wake_all();
  }
  bool empty() const { return items_.empty(); }
  std::size_t size() const { return items_.size(); }

 private:
  std::size_t capacity_;
  std::deque<T> items_;
  bool closed_ = false;
  WaitQueue elements_;
  WaitQueue space_;
};

/// Tasks that run beside their starter and are joined by it. join() must be awaited before the
/// scope is destroyed (asserted); it throws the first exception any of the tasks threw.
class TaskScope {
 public:
  TaskScope() = default;
  TaskScope(const TaskScope&) = delete;
  ~TaskScope();

  /// Starts `task` at once; it runs until its first suspension before spawn() returns.
  void spawn(Task<void> task);
  /// Waits for all tasks, also those spawned while waiting. The scope can be used again after.
  Task<void> join();
  std::size_t running() const { return running_; }
  /// True once a task has thrown; join() will throw it.
  bool failed() const { return exception_ != nullptr; }

 private:
  task_detail::Detached run(Task<void> task);

  std::size_t running_ = 0;
  std::exception_ptr exception_;
  WaitQueue done_;
};

/// Runs all tasks concurrently and waits for all; throws the first exception, after all ended.
Task<void> when_all(std::vector<Task<void>> tasks);

}  // namespace vise
