#include "format/qcow2/shared_clusters.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

void SharedTables::add_active(std::vector<std::uint64_t> l1) { add(std::move(l1), true); }
void SharedTables::add_snapshot(std::vector<std::uint64_t> l1) { add(std::move(l1), false); }

void SharedTables::add(std::vector<std::uint64_t> l1, bool is_active) {
  longest_ = std::max<std::uint64_t>(longest_, l1.size());
  tables_.push_back({std::move(l1), is_active});
}

std::vector<SharedTable> SharedTables::at(std::uint64_t index) const {
  std::vector<SharedTable> result;
  for (const L1& l1 : tables_) {
    if (index >= l1.entries.size()) continue;
    const HostOffset offset(l1.entries[index] & entry_offset_mask);
    if (offset.bytes() == 0) continue;
    if (!offset.is_aligned(geometry_.cluster_size)) {
      throw Error(EIO, fmt::format("the image is corrupt: an L1 entry points to {:#x}, which is "
                                   "not cluster-aligned",
                                   offset.bytes()));
    }
    const auto found = std::ranges::find(result, offset, &SharedTable::offset);
    SharedTable& table = found != result.end() ? *found : result.emplace_back();
    table.offset = offset;
    ++table.times;
    table.is_active = table.is_active || l1.is_active;
  }
  return result;
}

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
