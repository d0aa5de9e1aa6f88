// Task<T>: the lazy coroutine everything asynchronous in Vise is written as. Rules for writing
// coroutines that g++ 12 compiles correctly are in docs/style.md, "Coroutines".
#pragma once

#include <cassert>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "vise/error.h"

namespace vise {

template <class T>
class Task;

namespace task_detail {

/// Frames come from per-thread free lists by size, since most live for one request.
/// (Plain malloc under AddressSanitizer, which then sees uses after free.)
void* allocate_frame(std::size_t size);
void free_frame(void* frame, std::size_t size) noexcept;

struct PromiseBase {
  static void* operator new(std::size_t size) { return allocate_frame(size); }
  static void operator delete(void* frame, std::size_t size) noexcept { free_frame(frame, size); }

  std::suspend_always initial_suspend() const noexcept { return {}; }

  // A task that finishes while its awaiter is still inside await_suspend() must not resume the
  // awaiter: that one then continues by itself. This is what keeps the stack flat where the
  // compiler does not make symmetric transfer a tail call (-O0, -O1, sanitizers).
  struct FinalAwaiter {
    bool await_ready() const noexcept { return false; }
    template <class Promise>
    void await_suspend(std::coroutine_handle<Promise> self) const noexcept {
      PromiseBase& promise = self.promise();
      if (!promise.awaiter_suspended_) {
        promise.finished_inline_ = true;
        return;
      }
      promise.continuation_.resume();  // may destroy this frame
    }
    void await_resume() const noexcept {}
  };
  FinalAwaiter final_suspend() const noexcept { return {}; }
  void unhandled_exception() noexcept { exception_ = std::current_exception(); }

  std::coroutine_handle<> continuation_;
  bool awaiter_suspended_ = false;
  bool finished_inline_ = false;
  std::exception_ptr exception_;
};

template <class T>
struct Promise : PromiseBase {
  Task<T> get_return_object();
  template <class U>
    requires std::is_constructible_v<T, U&&>
  void return_value(U&& value) {
    value_.emplace(std::forward<U>(value));
  }
  T result() {
    if (exception_) std::rethrow_exception(std::move(exception_));
    return std::move(*value_);
  }
  std::optional<T> value_;
};

template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() const noexcept {}
  void result() {
    if (exception_) std::rethrow_exception(std::move(exception_));
  }
};

}  // namespace task_detail

/// A lazy coroutine: starts when awaited, runs on the awaiter's event loop, hands its value or its
/// exception to the awaiter. Awaited once, as an rvalue. Destroying a task that was not awaited
/// does nothing; destroying one that is suspended half-way is a programming error unless all that
/// it waits for is destroyed too.
template <class T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = task_detail::Promise<T>;
  using value_type = T;

  Task() = default;
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      if (handle_) handle_.destroy();
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  ~Task() {
    if (handle_) handle_.destroy();
  }

  bool valid() const { return handle_ != nullptr; }

  struct Awaiter {
    std::coroutine_handle<promise_type> handle;
    bool await_ready() const noexcept { return false; }
    bool await_suspend(std::coroutine_handle<> awaiting) const {
      promise_type& promise = handle.promise();
      promise.continuation_ = awaiting;
      handle.resume();
      if (promise.finished_inline_) return false;
      promise.awaiter_suspended_ = true;
      return true;
    }
    T await_resume() const { return handle.promise().result(); }
  };
  Awaiter operator co_await() && noexcept {
    assert(handle_);
    return Awaiter{handle_};
  }

  /// The same task with "`text`: " put in front of the message of an Error it throws.
  Task context(std::string text) &&;

 private:
  friend promise_type;
  explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}

  std::coroutine_handle<promise_type> handle_;
};

namespace task_detail {

template <class T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise>::from_promise(*this));
}
inline Task<void> Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise>::from_promise(*this));
}

template <class T>
Task<T> with_context(Task<T> task, std::string text) {
  try {
    co_return co_await std::move(task);
  } catch (Error& error) {
    error.add_context(text);
    throw;
  }
}

}  // namespace task_detail

template <class T>
Task<T> Task<T>::context(std::string text) && {
  return task_detail::with_context(std::move(*this), std::move(text));
}

}  // namespace vise
