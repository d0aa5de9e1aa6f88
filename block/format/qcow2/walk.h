// Walking over L2 entries in search of some.
#pragma once

#include <algorithm>

#include "format/qcow2/qcow2.h"
#include "vise/util/checked.h"

namespace vise::qcow2 {

/// The first stretch of `range` that starts with a cluster for which `chosen(number, descriptor)`
/// holds,
/// `most` bytes or what is left. Empty, at the end of `range`, if there is none.
template <class F>
Task<GuestRange> Qcow2::find_clusters(GuestRange range, std::uint64_t most, F chosen) {
  const std::uint64_t end = divide_up(range.end().bytes(), geometry_.cluster_size);
  for (std::uint64_t first = geometry_.cluster_of(range.start); first < end;) {
    const Mapping::Stretch stretch = co_await mapping_.get_stretch(first, end - first);
    for (std::uint64_t i = 0; !stretch.same && i < stretch.count; ++i) {
      if (!chosen(first + i, stretch.descriptors[i])) continue;
      const GuestOffset from = geometry_.guest_offset(first + i);
      const std::uint64_t length =
          align_up(std::max<std::uint64_t>(most, 1), geometry_.cluster_size);
      co_return GuestRange{from, std::min(length, range.end() - from)};
    }
    first += stretch.count;
  }
  co_return GuestRange{range.end(), 0};
}

}  // namespace vise::qcow2
