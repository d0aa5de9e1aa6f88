// Jobs that copy: several stretches at once, with speed, pauses and what to do about errors.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "job/job.h"

namespace vise {

class CopyJob : public Job {
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
  static constexpr unsigned chunks_in_flight = 8;

 private:
  Task<void> copy_pass();
  Task<void> walk(TaskScope& chunks, AsyncSemaphore& slots);
  Task<void> copy_one(GuestRange range, AsyncSemaphore& slots);

  std::vector<std::pair<GuestRange, CopyError>> failures_;  // of this pass
};

}  // namespace vise
