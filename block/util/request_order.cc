// Tickets and range locks.
#include "util/request_order.h"

#include <cassert>

namespace vise {

TicketQueue::Ticket TicketQueue::take() {
  const std::uint64_t number = turn_ + entries_.size();
  entries_.emplace_back();
  return Ticket(*this, number);
}

struct TicketQueue::Turn {
  TicketQueue& queue;
  std::uint64_t number;
  bool await_ready() const noexcept { return queue.turn_ == number; }
  void await_suspend(std::coroutine_handle<> handle) const { queue.entry(number).waiter = handle; }
  void await_resume() const noexcept {}
};

Task<void> TicketQueue::Ticket::turn() {
  assert(queue_ != nullptr);
  co_await Turn{*queue_, number_};
}

void TicketQueue::Ticket::set_appending(bool appending) {
  assert(queue_ != nullptr);
  queue_->entry(number_).appending = appending;
  if (!appending && queue_->on_change) queue_->on_change();
}

bool TicketQueue::next_is_appending() const {
  return !entries_.empty() && entries_.front().appending;
}

void TicketQueue::passed(std::uint64_t number) {
  entry(number).passed = true;
  entry(number).appending = false;
  if (number != turn_) return;
  while (!entries_.empty() && entries_.front().passed) {
    entries_.pop_front();
    ++turn_;
  }
  if (!entries_.empty() && entries_.front().waiter) {
    EventLoop::current().schedule(std::exchange(entries_.front().waiter, nullptr));
  }
  if (on_change) on_change();
}

RangeLocks::Guard RangeLocks::enqueue(std::uint64_t first, std::uint64_t last) {
  unsigned blockers = 0;
  for (const Entry& e : entries_) blockers += e.first <= last && first <= e.last;
  entries_.push_back({first, last, blockers, nullptr});
  return Guard(*this, std::prev(entries_.end()));
}

bool RangeLocks::is_free(std::uint64_t first, std::uint64_t last) const {
  for (const Entry& e : entries_) {
    if (e.first <= last && first <= e.last) return false;
  }
  return true;
}

namespace {
struct LockWait {
  RangeLocks::Entry& entry;
  bool await_ready() const noexcept { return entry.blockers == 0; }
  void await_suspend(std::coroutine_handle<> handle) const { entry.waiter = handle; }
  void await_resume() const noexcept {}
};
}  // namespace

Task<void> RangeLocks::Guard::held() { co_await LockWait{*entry_}; }

void RangeLocks::release(std::list<Entry>::iterator entry) {
  for (auto later = std::next(entry); later != entries_.end(); ++later) {
    if (later->first > entry->last || entry->first > later->last) continue;
    if (--later->blockers == 0 && later->waiter) {
      EventLoop::current().schedule(std::exchange(later->waiter, nullptr));
    }
  }
  entries_.erase(entry);
}

}  // namespace vise
