// What a node knows about the requests on their way through it: how many, which of them others must
// wait for, and whether new ones are held back (drain).
#pragma once

#include <coroutine>
#include <cstdint>
#include <memory>

#include "bitmap/bitmap_set.h"
#include "vise/child.h"
#include "vise/graph.h"
#include "vise/sync.h"

namespace vise {

class TrackedRequest;

/// A driver's Limits with every 0 replaced by what it stands for.
struct EffectiveLimits {
  std::uint64_t read_alignment = 1;
  std::uint64_t write_alignment = 1;
  std::uint64_t memory_alignment = 1;
  std::uint64_t max_transfer = 0;     // a multiple of write_alignment
  std::uint64_t max_compressed = 0;   // of compressed writes, a multiple of compressed_unit
  std::uint64_t compressed_unit = 1;  // of compressed writes: the cluster
  std::uint32_t max_segments = UINT32_MAX;
  std::uint64_t zero_alignment = 1;
  std::uint64_t max_zeroes = 0;  // a multiple of zero_alignment
  std::uint64_t discard_alignment = 1;
  std::uint64_t max_discard = 0;  // a multiple of discard_alignment

  EffectiveLimits() = default;
  /// Throws Error(EINVAL) for limits that contradict themselves (a faulty driver).
  explicit EffectiveLimits(const Limits& limits);
};

struct Node::Tracking {
  Limits limits;  // the driver's, asked once: limits() of a filter asks all the way down
  EffectiveLimits effective;
  Permissions applied{{}, Permissions::all()};  // what the driver was told last

  std::size_t in_flight = 0;
  /// Drains of this node and of those below it, by way of each edge. Roots hold requests back while
  /// it is not 0; requests of parent nodes pass, or what the drain waits for could never finish.
  std::size_t quiesced = 0;
  WaitQueue idle;     // for in_flight == 0
  WaitQueue resumed;  // for quiesced == 0

  TrackedRequest* newest = nullptr;
  std::size_t serialising = 0;  // requests in the list that are serialising

  /// Counts completed changes; a protocol that was flushed since the last one need not be again.
  std::uint64_t write_generation = 1;
  std::uint64_t flushed_generation = 0;

  /// A write that reaches past this offset is told once (BLOCK_WRITE_THRESHOLD); 0: none is.
  std::uint64_t write_threshold = 0;

  std::unique_ptr<BitmapSet> bitmaps;  // null: there never were any

  std::uint64_t visit = 0;  // scratch of walks over the graph
};

/// Tells a write that has reached past the node's threshold, which is 0 then.
void tell_threshold(Node& node, GuestRange range) noexcept;

/// One request in the list of its node, from admission to completion. Lives in the frame of the
/// edge's coroutine. Order of waiting is order of arrival, so waiting never closes a circle.
class TrackedRequest {
 public:
  /// What it does to the node. storage: something is to be flushed afterwards, but what readers see
  /// in the range is as before, so that dirty bitmaps do not record it.
  enum class Change { none, storage, content };
  enum class Serialising { no, yes };

  TrackedRequest(Child& edge, GuestRange range, Change change, Serialising serialising)
      : edge_(edge),
        tracking_(edge.node().tracking()),
        range_(range),
        older_(tracking_.newest),
        change_(change),
        serialising_(serialising) {
    if (older_ != nullptr) older_->newer_ = this;
    tracking_.newest = this;
    ++tracking_.in_flight;
    ++edge_.in_flight_;
    if (serialising_ == Serialising::yes) ++tracking_.serialising;
  }
  TrackedRequest(const TrackedRequest&) = delete;
  ~TrackedRequest() {
    if (older_ != nullptr) older_->newer_ = newer_;
    if (newer_ != nullptr) {
      newer_->older_ = older_;
    } else {
      tracking_.newest = older_;
    }
    if (serialising_ == Serialising::yes) --tracking_.serialising;
    if (change_ != Change::none) ++tracking_.write_generation;
    // Afterwards: whoever copies by the bitmap may read the old content as long as it is there. A
    // request that failed may have been done in part.
    if (change_ == Change::content && tracking_.bitmaps) [[unlikely]] {
      tracking_.bitmaps->record(range_, edge_.node().size());
    }
    while (waiters_ != nullptr) {
      EventLoop::current().schedule(waiters_->handle_);
      waiters_ = waiters_->next_waiter_;
    }
    --edge_.in_flight_;
    if (--tracking_.in_flight == 0) tracking_.idle.wake_all();
    if (change_ == Change::content && tracking_.write_threshold != 0) [[unlikely]] {
      tell_threshold(edge_.node(), range_);
    }
  }

  /// An older request that must finish before this one may start, or null.
  TrackedRequest* blocker() const {
    if (tracking_.serialising == 0) return nullptr;
    return find_blocker();
  }

  struct Finished {
    TrackedRequest& older;
    TrackedRequest& self;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) const noexcept {
      self.handle_ = handle;
      self.next_waiter_ = older.waiters_;
      older.waiters_ = &self;
    }
    void await_resume() const noexcept {}
  };
  /// co_await older->finished(self)
  Finished finished(TrackedRequest& self) { return Finished{*this, self}; }

 private:
  TrackedRequest* find_blocker() const {
    for (TrackedRequest* other = older_; other != nullptr; other = other->older_) {
      if ((serialising_ == Serialising::yes || other->serialising_ == Serialising::yes) &&
          range_.overlaps(other->range_)) {
        return other;
      }
    }
    return nullptr;
  }

  Child& edge_;
  Node::Tracking& tracking_;
  GuestRange range_;
  TrackedRequest* older_;
  TrackedRequest* newer_ = nullptr;
  TrackedRequest* waiters_ = nullptr;      // requests that wait for this one
  TrackedRequest* next_waiter_ = nullptr;  // in the list of the one this waits for
  std::coroutine_handle<> handle_;         // while waiting
  Change change_;
  Serialising serialising_;
};

}  // namespace vise
