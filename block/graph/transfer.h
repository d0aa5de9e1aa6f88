// Requests of any shape made into requests a driver accepts: split, padded by read-modify-write,
// bounced. The second half of the generic request path; the first is request.cc.
#pragma once

#include "graph/tracking.h"
#include "vise/driver.h"

namespace vise {

/// Where a request goes. Borrowed for its duration.
struct Target {
  Driver& driver;
  const EffectiveLimits& limits;
  std::uint64_t size;  // of the node, in bytes
};

/// True if `data` may be handed to the driver as it is, as far as memory is concerned.
inline bool memory_fits(const EffectiveLimits& limits, const ConstIoVec& data) {
  return (limits.max_segments == UINT32_MAX || data.segment_count() <= limits.max_segments) &&
         (limits.memory_alignment == 1 || data.is_aligned(limits.memory_alignment));
}

/// True if range and memory may go to the driver in one piece.
inline bool fits(const EffectiveLimits& limits, GuestRange range, const ConstIoVec& data,
                 std::uint64_t alignment) {
  return ((range.start.bytes() | range.length) & (alignment - 1)) == 0 &&
         range.length <= limits.max_transfer && memory_fits(limits, data);
}

/// Any range inside the node. What is padded must be guarded by a serialising request.
Task<void> read_any(Target target, GuestOffset offset, IoVec data);
Task<void> write_any(Target target, GuestOffset offset, ConstIoVec data, WriteFlags flags);
Task<void> write_zeroes_any(Target target, GuestRange range, ZeroFlags flags);
Task<void> write_zeroes_as_data(Target target, GuestRange range, ZeroFlags flags);
Task<void> discard_any(Target target, GuestRange range);

}  // namespace vise
