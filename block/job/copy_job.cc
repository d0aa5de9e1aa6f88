#include "job/copy_job.h"

#include <algorithm>

#include "bitmap/dirty_bitmap.h"
#include "copy/slot_holder.h"
#include "copy/turns.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise {

std::uint64_t CopyJob::chunk_size(std::uint64_t cluster_size) {
  constexpr std::uint64_t usual = 512u << 10;
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

struct CopyJob::Pass {
  explicit Pass(unsigned most_in_flight) : slots(most_in_flight) {}
  TaskScope chunks;
  AsyncSemaphore slots;
  Turns turns;
};

Task<void> CopyJob::copy_pass() {
  Pass pass(most_in_flight_);
  std::exception_ptr failure;
  try {
    co_await walk(pass);
  } catch (...) {
    failure = std::current_exception();
  }
  co_await pass.chunks.join();
  if (failure) std::rethrow_exception(failure);
}

Task<void> CopyJob::walk(Pass& pass) {
  GuestOffset position(0);
  std::uint64_t number = 0;
  while (failures_.empty()) {
    co_await checkpoint();
    const std::optional<GuestRange> range = co_await next(position);
    if (!range) co_return;
    position = range->end();
    co_await wait_for_speed(range->length);
    co_await pass.slots.acquire();
    if (is_cancelled() || is_paused() || !failures_.empty()) {
      pass.slots.release();
      co_await checkpoint();
      position = range->start;
      continue;
    }
    pass.chunks.spawn(copy_one(pass, *range, number++));
  }
}

Task<void> CopyJob::copy_one(Pass& pass, GuestRange range, std::uint64_t number) {
  const SlotHolder slot(pass.slots);
  Turn turn(pass.turns, number);
  std::exception_ptr failure;
  try {
    co_await copy(range, turn);
  } catch (const CopyError& error) {
    failures_.emplace_back(range, error);
  } catch (...) {
    failure = std::current_exception();
  }
  co_await turn.end();
  if (failure) std::rethrow_exception(failure);
}

std::optional<GuestRange> CopyJob::next_dirty_chunk(const DirtyBitmap& todo, GuestOffset from,
                                                    std::uint64_t chunk) {
  const std::optional<GuestRange> dirty = todo.next_dirty(from);
  if (!dirty) return std::nullopt;
  const std::uint64_t start = dirty->start.bytes();
  const std::uint64_t end = std::min(start - start % chunk + chunk, dirty->end().bytes());
  return GuestRange{dirty->start, end - start};
}

std::vector<GuestRange> CopyJob::dirty_stretches(const DirtyBitmap& todo, GuestRange range) {
  std::vector<GuestRange> found;
  GuestOffset from = range.start;
  while (const std::optional<GuestRange> part = todo.next_dirty(from, range.end().bytes())) {
    found.push_back(*part);
    from = part->end();
  }
  return found;
}

}  // namespace vise
