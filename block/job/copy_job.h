// Jobs that copy: several stretches at once, with speed, pauses and what to do about errors.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "job/job.h"

namespace vise {

class DirtyBitmap;
class Turn;

class CopyJob : public Job {
 public:
 protected:
  using Job::Job;

  /// The next stretch at or after `from` that is still to be copied, at most chunk_size() long;
  /// nothing: there is none.
  virtual Task<std::optional<GuestRange>> next(GuestOffset from) = 0;
  /// Copies it, storing when it is its turn (block/copy/turns.h). Throws CopyError.
  virtual Task<void> copy(GuestRange range, Turn& turn) = 0;
  /// An error that the client wants ignored: next() may leave the range out from now on, or it is
  /// tried again.
  virtual void ignored(GuestRange) {}

  /// Copies until next() finds nothing any more.
  Task<void> copy_all();

  /// How many stretches are copied at once: 1 or more; to be said before the first.
  void set_most_in_flight(unsigned count) { most_in_flight_ = count; }

  /// Bytes of a stretch: whole clusters of `cluster_size`.
  static std::uint64_t chunk_size(std::uint64_t cluster_size);
  /// The next stretch of `todo` at or after `from`, which ends where a multiple of `chunk` bytes
  /// is.
  static std::optional<GuestRange> next_dirty_chunk(const DirtyBitmap& todo, GuestOffset from,
                                                    std::uint64_t chunk);
  /// All that `todo` has in `range`.
  static std::vector<GuestRange> dirty_stretches(const DirtyBitmap& todo, GuestRange range);

 private:
  Task<void> copy_pass();
  struct Pass;
  Task<void> walk(Pass& pass);
  Task<void> copy_one(Pass& pass, GuestRange range, std::uint64_t number);

  unsigned most_in_flight_ = 8;
  std::vector<std::pair<GuestRange, CopyError>> failures_;  // of this pass
};

}  // namespace vise
