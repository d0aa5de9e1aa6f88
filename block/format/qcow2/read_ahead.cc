#include "format/qcow2/read_ahead.h"

#include <algorithm>

namespace vise::qcow2 {

namespace {
// Two reads in a row may be chance.
constexpr unsigned reads_of_a_reader = 3;
}  // namespace

ReadAhead::Clusters ReadAhead::next(GuestRange part) {
  const std::uint64_t cluster = part.start.bytes() >> cluster_bits_;
  const auto found = std::ranges::find_if(streams_, [&](const Stream& stream) {
    return stream.reads > 0 && stream.next == part.start;
  });
  if (found == streams_.end()) {
    Stream& oldest = *std::ranges::min_element(streams_, {}, &Stream::used);
    oldest = {part.end(), cluster + 1, 1, ++clock_};
    return {};
  }
  found->next = part.end();
  found->used = ++clock_;
  if (found->reads < reads_of_a_reader) ++found->reads;
  if (found->reads < reads_of_a_reader) return {};
  const std::uint64_t first = std::max(found->ahead, cluster + 1);
  const std::uint64_t end = cluster + 1 + most_;
  found->ahead = std::max(first, end);
  return {first, found->ahead - first};
}

}  // namespace vise::qcow2
