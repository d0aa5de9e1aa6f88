#include "job/copy_job.h"

#include <algorithm>

#include "bitmap/dirty_bitmap.h"
#include "copy/slot_holder.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise {

std::uint64_t CopyJob::chunk_size(std::uint64_t cluster_size) {
  constexpr std::uint64_t usual = std::uint64_t{1} << 20;
  return cluster_size == 0 ? usual : divide_up(usual, cluster_size) * cluster_size;
}

Task<void> CopyJob::copy_all() {
  for (;;) {
    failures_.clear();
    co_await copy_pass();
    if (failures_.empty()) co_return;
    for (const auto& [range, error] : failures_) {
      if (react_to(error) == Reaction::ignore) ignored(range);
    }
    co_await after_errors();
  }
}

Task<void> CopyJob::copy_pass() {
  TaskScope chunks;
  AsyncSemaphore slots(chunks_in_flight);
  std::exception_ptr failure;
  try {
    co_await walk(chunks, slots);
  } catch (...) {
    failure = std::current_exception();
  }
  co_await chunks.join();
  if (failure) std::rethrow_exception(failure);
}

Task<void> CopyJob::walk(TaskScope& chunks, AsyncSemaphore& slots) {
  GuestOffset position(0);
  while (failures_.empty()) {
    co_await checkpoint();
    const std::optional<GuestRange> range = co_await next(position);
    if (!range) co_return;
    position = range->end();
    co_await wait_for_speed(range->length);
    co_await slots.acquire();
    if (is_cancelled() || is_paused() || !failures_.empty()) {
      slots.release();
      co_await checkpoint();
      position = range->start;
      continue;
    }
    chunks.spawn(copy_one(*range, slots));
  }
}

Task<void> CopyJob::copy_one(GuestRange range, AsyncSemaphore& slots) {
  const SlotHolder slot(slots);
  try {
    co_await copy(range);
  } catch (const CopyError& error) {
    failures_.emplace_back(range, error);
  }
}

std::optional<GuestRange> CopyJob::next_dirty_chunk(const DirtyBitmap& todo, GuestOffset from,
                                                    std::uint64_t unit) {
  const std::optional<GuestRange> dirty = todo.next_dirty(from);
  if (!dirty) return std::nullopt;
  const std::uint64_t chunk = chunk_size(unit);
  const std::uint64_t start = dirty->start.bytes();
  const std::uint64_t end = std::min(start - start % chunk + chunk, dirty->end().bytes());
  return GuestRange{dirty->start, end - start};
}

}  // namespace vise
