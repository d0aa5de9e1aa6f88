// Awaitable synchronisation. Every wake-up goes through the loop so that hand-offs do not nest.
#include "vise/sync.h"

#include <cassert>

namespace vise {

bool WaitQueue::wake_one() {
  if (waiters_.empty()) return false;
  EventLoop::current().schedule(waiters_.front());
  waiters_.pop_front();
  return true;
}

void WaitQueue::wake_all() {
  while (wake_one()) {
  }
}

void AsyncMutex::unlock() {
  assert(locked_);
  if (waiters_.empty()) {
    locked_ = false;
    return;
  }
  EventLoop::current().schedule(waiters_.front());  // which now holds the lock
  waiters_.pop_front();
}

bool AsyncSemaphore::Awaiter::await_ready() const noexcept {
  if (!semaphore.waiters_.empty() || semaphore.free_ < units) return false;
  semaphore.free_ -= units;
  return true;
}

void AsyncSemaphore::Awaiter::await_suspend(std::coroutine_handle<> handle) const {
  semaphore.waiters_.push_back({handle, units});
}

void AsyncSemaphore::release(std::uint64_t units) {
  free_ = free_ + units < total_ ? free_ + units : total_;
  while (!waiters_.empty() && waiters_.front().units <= free_) {
    free_ -= waiters_.front().units;
    EventLoop::current().schedule(waiters_.front().handle);
    waiters_.pop_front();
  }
}

void AsyncEvent::set() {
  set_ = true;
  for (const auto handle : waiters_) EventLoop::current().schedule(handle);
  waiters_.clear();
}

TaskScope::~TaskScope() { assert(running_ == 0 && "join() the scope before it goes"); }

void TaskScope::spawn(Task<void> task) {
  ++running_;
  run(std::move(task));
}

task_detail::Detached TaskScope::run(Task<void> task) {
  try {
    co_await std::move(task);
  } catch (...) {
    if (!exception_) exception_ = std::current_exception();
  }
  if (--running_ == 0) done_.wake_all();
}

Task<void> TaskScope::join() {
  while (running_ > 0) co_await done_.wait();
  if (exception_) std::rethrow_exception(std::exchange(exception_, nullptr));
}

Task<void> when_all(std::vector<Task<void>> tasks) {
  TaskScope scope;
  for (Task<void>& task : tasks) scope.spawn(std::move(task));
  co_await scope.join();
}

}  // namespace vise
