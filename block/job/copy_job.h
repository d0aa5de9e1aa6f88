// Jobs that copy: several stretches at once, with speed, pauses and what to do about errors.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "job/job.h"

namespace vise {

class DirtyBitmap;

class CopyJob : public Job {
 public:
 protected:
  using Job::Job;

  /// The next stretch at or after `from` that is still to be copied, at most chunk_size() long;
  /// nothing: there is none.
  virtual Task<std::optional<GuestRange>> next(GuestOffset from) = 0;
  /// Copies it. Throws CopyError.
  virtual Task<void> copy(GuestRange range) = 0;
  /// An error that the client wants ignored: next() may leave the range out from now on, or it is
  /// tried again.
  virtual void ignored(GuestRange) {}

  /// Copies until next() finds nothing any more.
  Task<void> copy_all();

  /// Bytes of a stretch: whole clusters of `cluster_size`.
  static std::uint64_t chunk_size(std::uint64_t cluster_size);
  /// The next stretch of `todo` at or after `from`, which ends where a chunk of `unit`s does.
  static std::optional<GuestRange> next_dirty_chunk(const DirtyBitmap& todo, GuestOffset from,
                                                    std::uint64_t unit);
  static constexpr unsigned chunks_in_flight = 8;

 private:
  Task<void> copy_pass();
  Task<void> walk(TaskScope& chunks, AsyncSemaphore& slots);
  Task<void> copy_one(GuestRange range, AsyncSemaphore& slots);

  std::vector<std::pair<GuestRange, CopyError>> failures_;  // of this pass
};

}  // namespace vise
