// The search for holes between compressed clusters. Who fills them: space.cc.
#include "format/qcow2/hole_scan.h"

#include <algorithm>

#include "format/qcow2/mapping.h"
#include "format/qcow2/space.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

namespace {
constexpr std::uint64_t sector = 512;
}

// --- UseMap -------------------------------------------------------------------------------------

UseMap::UseMap(std::uint64_t first, std::uint64_t count, unsigned cluster_bits)
    : first_(first),
      cluster_bits_(cluster_bits),
      sectors_((std::uint64_t{1} << cluster_bits) / sector),
      used_(count * sectors_),
      references_(count) {}

std::uint64_t UseMap::clusters_in(std::uint64_t bytes, unsigned cluster_bits) {
  const std::uint64_t sectors = (std::uint64_t{1} << cluster_bits) / sector;
  return bytes * 8 / (sectors + 8 * sizeof(std::uint32_t));
}

void UseMap::add(HostRange extent) {
  if (extent.empty()) return;
  const std::uint64_t from = first_ << cluster_bits_;
  const std::uint64_t to = end() << cluster_bits_;
  const std::uint64_t start = std::max(extent.start.bytes(), from);
  const std::uint64_t last = std::min(extent.end().bytes(), to);
  if (start >= last) return;
  const auto first_sector = static_cast<std::ptrdiff_t>((start - from) / sector);
  const auto end_sector = static_cast<std::ptrdiff_t>((last - 1 - from) / sector + 1);
  std::fill(used_.begin() + first_sector, used_.begin() + end_sector, true);  // by words
  const std::uint64_t last_cluster = (last - 1) >> cluster_bits_;
  for (std::uint64_t c = start >> cluster_bits_; c <= last_cluster; ++c) {
    std::uint32_t& count = references_[c - first_];
    if (count < excluded - 1) ++count;
  }
}

void UseMap::exclude(std::uint64_t cluster) {
  if (cluster >= first_ && cluster < end()) references_[cluster - first_] = excluded;
}

std::uint64_t UseMap::references(std::uint64_t cluster) const {
  const std::uint32_t count = references_[cluster - first_];
  return count >= excluded - 1 ? 0 : count;
}

std::vector<HostRange> UseMap::holes(std::uint64_t cluster, std::uint64_t smallest) const {
  std::vector<HostRange> result;
  const std::uint64_t begin = (cluster - first_) * sectors_;
  for (std::uint64_t s = 0; s < sectors_;) {
    const std::uint64_t start = s;
    while (s < sectors_ && !is_used(begin + s)) ++s;
    if (s > start && (s - start) * sector >= smallest) {
      result.push_back(
          {HostOffset((cluster << cluster_bits_) + start * sector), (s - start) * sector});
    }
    while (s < sectors_ && is_used(begin + s)) ++s;
  }
  return result;
}

// --- HoleScan -----------------------------------------------------------------------------------

HoleScan::HoleScan(const Geometry& geometry, Child& file, Mapping& mapping, Refcounts& refcounts,
                   Space& space, FlightRegister& flights, EventLoop& loop)
    : geometry_(geometry),
      file_(file),
      mapping_(mapping),
      refcounts_(refcounts),
      space_(space),
      flights_(flights),
      loop_(loop) {}

void HoleScan::begin_round() {
  next_ = 0;
  round_end_ = divide_up(file_.size(), geometry_.cluster_size);
  // A new image, say. What this session writes to it, it knows.
  if (std::ranges::all_of(mapping_.l1(), [](std::uint64_t entry) { return entry == 0; })) {
    next_ = round_end_;
  }
}

void HoleScan::start_if_due() {
  if (scope_.running() > 0 || geometry_.data_file || !space_.lacks_holes()) return;
  if (is_over()) {
    if (!space_.take_round_due()) return;
    begin_round();
    if (is_over()) return;
  }
  scope_.spawn(run());
}

Task<void> HoleScan::stop() {
  stopping_ = true;
  co_await scope_.join();
  stopping_ = false;
}

Task<void> HoleScan::run() {
  try {
    co_await search();
  } catch (const Error&) {
    // Metadata that cannot be read or is damaged: whoever needs it will be told.
    next_ = round_end_;
  }
}

// One map at a time, and no further once there are as many holes as we care to remember.
Task<void> HoleScan::search() {
  while (!is_over() && !stopping_ && space_.holes().count() < most_holes) {
    const std::uint64_t most = UseMap::clusters_in(map_memory, geometry_.cluster_bits);
    UseMap uses(next_, std::min(most, round_end_ - next_), geometry_.cluster_bits);
    space_.watch(&uses);
    std::exception_ptr failure;
    try {
      co_await find_extents(uses);
      if (!stopping_) co_await publish(uses);
    } catch (...) {
      failure = std::current_exception();
    }
    space_.watch(nullptr);
    if (failure) std::rethrow_exception(failure);
  }
}

// The disk has a table as it is or as it was a little while ago, the cache what is new. Entries
// that are out of date point to what still counts as in use, or to clusters whose count has
// changed since.
Task<void> HoleScan::find_extents(UseMap& uses) {
  const std::uint64_t slice_size = mapping_.cache().slice_size();
  Buffer table(geometry_.cluster_size);
  for (std::uint64_t i = 0; i < mapping_.l1().size() && !stopping_; ++i) {
    const HostOffset offset(mapping_.l1()[i] & entry_offset_mask);
    if (offset.bytes() == 0 || !offset.is_aligned(geometry_.cluster_size)) continue;
    {
      // While this is in flight, a table that is given up holds nothing else.
      const FlightRegister::Flight flight(flights_);
      co_await read_padded(file_, offset, table.span());
    }
    for (std::uint64_t at = 0; at < geometry_.cluster_size && !stopping_; at += slice_size) {
      const TableCache::Ref cached = mapping_.cache().try_get(offset + at);
      const std::span<const std::byte> entries = table.span().subspan(at, slice_size);
      add_entries(cached ? std::span(cached.data(), slice_size) : entries, uses);
      co_await loop_.yield();
    }
  }
}

void HoleScan::add_entries(std::span<const std::byte> entries, UseMap& uses) const {
  for (std::size_t at = 0; at < entries.size(); at += geometry_.l2_entry_size) {
    const auto word = load_be<std::uint64_t>(entries.data() + at);
    if ((word & entry_compressed) == 0) continue;
    const Descriptor descriptor = Descriptor::decode(word, 0, geometry_);
    uses.add({descriptor.host, descriptor.stored_length});
  }
}

Task<void> HoleScan::publish(const UseMap& uses) {
  // Those that no cluster of usual data fits into are not worth remembering.
  const std::uint64_t smallest = std::max(sector, geometry_.cluster_size / 64);
  while (next_ < uses.end()) {
    const std::uint64_t cluster = next_++;
    if (cluster % 256 == 0) co_await loop_.yield();
    if (stopping_ || space_.holes().count() >= most_holes) co_return;
    if (uses.references(cluster) == 0) continue;
    const std::uint64_t count = co_await refcounts_.get(cluster);
    // Asked again: the cluster may have been excluded meanwhile.
    if (count != uses.references(cluster)) continue;
    space_.found_holes(cluster, uses.holes(cluster, smallest));
  }
}

}  // namespace vise::qcow2
