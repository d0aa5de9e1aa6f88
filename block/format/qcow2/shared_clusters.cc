#include "format/qcow2/shared_clusters.h"

#include <algorithm>
#include <utility>

#include "vise/util/endian.h"

namespace vise::qcow2 {

bool SharedEntries::is_data(const Descriptor& d) const {
  return !d.compressed && d.allocated != 0 && (d.allocated | d.zero) == geometry_.all_subclusters;
}

void SharedEntries::add(const SharedTable& table, HostOffset place,
                        std::span<const std::byte> entry) {
  const auto word = load_be<std::uint64_t>(entry.data());
  if (word == 0) return;
  const std::uint64_t bitmap = geometry_.extended_l2 ? load_be<std::uint64_t>(entry.data() + 8) : 0;
  const Descriptor d = Descriptor::decode(word, bitmap, geometry_);
  if (d.compressed || !d.has_host) return;
  const auto found = std::ranges::find_if(
      candidates_, [&](const Candidate& known) { return known.cluster.host == d.host; });
  const bool is_new = found == candidates_.end();
  Candidate& candidate = is_new ? candidates_.emplace_back() : *found;
  SharedCluster& cluster = candidate.cluster;
  if (is_new) {
    cluster.host = d.host;
    cluster.zero = d.zero;
  }
  const bool is_own = table.is_active && d.copied;
  if (!is_data(d) || is_own || cluster.zero != d.zero) candidate.fits = false;
  cluster.references += table.times;
  cluster.entries.push_back(place);
}

std::vector<SharedCluster> SharedEntries::take() {
  std::vector<SharedCluster> result;
  for (Candidate& candidate : candidates_) {
    if (candidate.fits) result.push_back(std::move(candidate.cluster));
  }
  candidates_.clear();
  return result;
}

}  // namespace vise::qcow2
