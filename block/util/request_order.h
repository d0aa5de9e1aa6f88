// Who goes first: tickets for what must happen in the order in which requests arrived, and locks on
// ranges of clusters.
#pragma once

#include <coroutine>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <utility>

#include "vise/sync.h"
#include "vise/task.h"

namespace vise {

/// Requests that need space take a ticket when they start and allocate when its turn comes. The
/// layout of an image thus depends on the order of requests alone, not on which worker was faster.
class TicketQueue {
 public:
  class Ticket {
   public:
    Ticket() = default;
    Ticket(TicketQueue& queue, std::uint64_t number) : queue_(&queue), number_(number) {}
    Ticket(Ticket&& other) noexcept
        : queue_(std::exchange(other.queue_, nullptr)), number_(other.number_) {}
    Ticket& operator=(Ticket&& other) noexcept {
      std::swap(queue_, other.queue_);
      std::swap(number_, other.number_);
      return *this;
    }
    ~Ticket() { pass(); }

    /// Waits until all earlier tickets have passed.
    Task<void> turn();
    bool has_turn() const { return queue_ != nullptr && queue_->turn_ == number_; }
    /// The holder needs no (more) space. Idempotent.
    void pass() {
      if (queue_ != nullptr) std::exchange(queue_, nullptr)->passed(number_);
    }
    /// True for a ticket whose holder is on its way to append compressed clusters: whoever gathers
    /// a large write may wait for it, since it waits for nobody but earlier tickets.
    void set_appending(bool appending);

   private:
    TicketQueue* queue_ = nullptr;
    std::uint64_t number_ = 0;
  };

  /// Never suspends.
  Ticket take();
  /// True if the holder of the current turn has said set_appending(true).
  bool next_is_appending() const;
  /// Called whenever next_is_appending() may have changed to false.
  std::function<void()> on_change;

 private:
  struct Entry {
    bool passed = false;
    bool appending = false;
    std::coroutine_handle<> waiter;
  };
  struct Turn;
  void passed(std::uint64_t number);
  Entry& entry(std::uint64_t number) { return entries_[number - turn_]; }

  std::uint64_t turn_ = 0;     // the number of entries_.front()
  std::deque<Entry> entries_;  // tickets from turn_ on
};

/// Exclusive locks on ranges of guest clusters, first come, first served: a lock waits for all
/// earlier overlapping ones, held or waiting, so waiting in arrival order cannot deadlock.
class RangeLocks {
 public:
  struct Entry {
    std::uint64_t first;  // cluster
    std::uint64_t last;   // cluster, inclusive
    unsigned blockers = 0;
    std::coroutine_handle<> waiter;
  };

  class Guard {
   public:
    Guard() = default;
    Guard(RangeLocks& locks, std::list<Entry>::iterator entry) : locks_(&locks), entry_(entry) {}
    Guard(Guard&& other) noexcept
        : locks_(std::exchange(other.locks_, nullptr)), entry_(other.entry_) {}
    Guard& operator=(Guard&& other) noexcept {
      std::swap(locks_, other.locks_);
      std::swap(entry_, other.entry_);
      return *this;
    }
    ~Guard() { release(); }
    /// Takes the place in the queue at once; held() completes when the range is ours.
    bool is_held() const { return entry_->blockers == 0; }
    Task<void> held();
    void release() {
      if (locks_ != nullptr) std::exchange(locks_, nullptr)->release(entry_);
    }

   private:
    RangeLocks* locks_ = nullptr;
    std::list<Entry>::iterator entry_;
  };

  /// Never suspends: await held() on the result.
  Guard enqueue(std::uint64_t first, std::uint64_t last);
  bool is_free(std::uint64_t first, std::uint64_t last) const;

 private:
  void release(std::list<Entry>::iterator entry);
  std::list<Entry> entries_;  // in order of arrival
};

}  // namespace vise
