// Keeps copies of a stretch from overwriting what a guest writes to it meanwhile: copies wait for
// all overlapping requests, changes only for copies.
#pragma once

#include <algorithm>
#include <iterator>
#include <list>
#include <utility>

#include "vise/sync.h"
#include "vise/types.h"

namespace vise {

class CopyLocks {
 public:
  enum class Kind { copy, change };
  struct Entry {
    GuestRange range;
    Kind kind;
  };

  class Guard {
   public:
    Guard() = default;
    Guard(CopyLocks& locks, std::list<Entry>::iterator entry) : locks_(&locks), entry_(entry) {}
    Guard(Guard&& other) noexcept
        : locks_(std::exchange(other.locks_, nullptr)), entry_(other.entry_) {}
    Guard& operator=(Guard&&) = delete;
    ~Guard() {
      if (locks_ == nullptr) return;
      locks_->entries_.erase(entry_);
      locks_->released_.wake_all();
    }

   private:
    CopyLocks* locks_ = nullptr;  // null: holds nothing
    std::list<Entry>::iterator entry_;
  };

  /// Takes the whole range at once, so that nobody waits for anybody in a circle.
  Task<Guard> lock(GuestRange range, Kind kind) {
    while (is_busy(range, kind)) co_await released_.wait();
    entries_.push_back({range, kind});
    co_return Guard(*this, std::prev(entries_.end()));
  }

 private:
  bool is_busy(GuestRange range, Kind kind) const {
    return std::ranges::any_of(entries_, [&](const Entry& held) {
      const bool excludes = kind == Kind::copy || held.kind == Kind::copy;
      return excludes && held.range.overlaps(range);
    });
  }

  std::list<Entry> entries_;
  WaitQueue released_;
};

}  // namespace vise
