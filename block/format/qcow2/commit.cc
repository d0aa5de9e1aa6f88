// The order in which data and metadata reach the disk, stated once, here:
//
//   1. data is stable before the L2 entry that points to it;
//   2. a raised refcount is stable before the L2 entry that needs it;
//   3. a replaced L2 entry is stable before the refcount of what it pointed to is lowered;
//   4. freed space is given out again only after (3), and after all requests that were in flight
//      when it was freed have ended (space.h).
//
// A commit takes copies of the dirty L2 slices first. All data they point to has been written by
// then, since entries change in memory only after the data is written, so that one sync serves
// rules 1 and 2 and the second makes the entries stable. What happens meanwhile belongs to the
// next commit.
#include <algorithm>

#include "format/qcow2/qcow2.h"

namespace vise::qcow2 {

Task<void> Qcow2::commit_now() {
  Mapping::Changes changes = mapping_.changes();
  std::vector<Space::Freed> freed = space_.take_pending();
  std::vector<Refcounts::NewBlock> blocks = refcounts_.unhooked_blocks();

  std::exception_ptr failure;
  try {
    if (!rules_.counts_before_l2) {
      co_await file_->flush();
      co_await mapping_.write_new_tables(changes);
      co_await mapping_.write_links(changes);
      co_await file_->flush();
    }
    // New refcount blocks before the table entries that name them.
    if (!blocks.empty()) {
      co_await refcounts_.write_blocks(blocks);
      co_await file_->flush();
      co_await refcounts_.hook_blocks(blocks);
    }
    co_await refcounts_.write_dirty();
    co_await mapping_.write_new_tables(changes);
    if (rules_.data_before_l2) {
      if (data_file_) co_await data_file_->flush();
      co_await file_->flush();
    }
    co_await mapping_.write_links(changes);
    co_await file_->event(Event::flush_to_disk);
    co_await file_->flush();
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    // Nothing is known about what reached the disk: what was freed stays as it is, a leak at worst.
    space_.put_back(std::move(freed));
    std::rethrow_exception(failure);
  }
  space_.became_stable(freed);
  for (const HostRange& table : refcounts_.take_abandoned()) space_.free_unlinked(table);
  co_await space_.reclaim();
}

// Makes the counts stable, with the data and new tables written so far.
Task<void> Qcow2::commit_counts() {
  std::vector<Refcounts::NewBlock> blocks = refcounts_.unhooked_blocks();
  if (!blocks.empty()) {
    co_await refcounts_.write_blocks(blocks);
    co_await file_->flush();
    co_await refcounts_.hook_blocks(blocks);
  }
  co_await refcounts_.write_dirty();
  co_await file_->flush();
}

// Callers that arrive while a commit runs share the next one.
Task<void> Qcow2::commit() {
  const std::uint64_t mine = ++commits_wanted_;
  AsyncMutex::Guard guard = co_await commit_mutex_.lock();
  if (commits_covered_ >= mine) co_return;
  require_running();
  co_await file_->event(Event::flush_to_os);
  const std::uint64_t covered = commits_wanted_;
  // After a failed flush, entries may be on their way to the disk that free something.
  if (mapping_.is_dirty() || space_.has_pending() || refcounts_.has_abandoned()) {
    co_await commit_now();
  } else {
    co_await file_->event(Event::flush_to_disk);
    if (data_file_) co_await data_file_->flush();
    co_await file_->flush();
  }
  commits_covered_ = covered;
}

Task<void> Qcow2::flush() {
  if (read_only_) co_return;
  co_await commit();
}

// Keeps the dirty part of the cache and the space that waits for a commit within bounds when
// nobody flushes.
Task<void> Qcow2::commit_if_due() {
  // Bytes of the file that a commit would make usable again: a share of it bounds the bloat.
  const std::uint64_t most_pending =
      std::clamp<std::uint64_t>(file_->size() / 8, 1u << 20, 32u << 20);
  const bool due = mapping_.dirty_bytes() > settings_.l2_cache_size / 2 ||
                   refcounts_.dirty_bytes() > settings_.refcount_cache_size ||
                   space_.pending_bytes() > most_pending;
  if (!due || commit_due_running_) co_return;
  commit_due_running_ = true;
  std::exception_ptr failure;
  try {
    co_await commit();
  } catch (...) {
    failure = std::current_exception();
  }
  commit_due_running_ = false;
  if (failure) std::rethrow_exception(failure);
}

}  // namespace vise::qcow2
