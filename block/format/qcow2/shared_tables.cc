#include "format/qcow2/shared_tables.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fmt/format.h>

#include "format/qcow2/metadata_io.h"
#include "format/qcow2/snapshot_table.h"
#include "vise/buffer.h"
#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

namespace {
// All tables together; each gets a sector at least, so that very many snapshots take more.
constexpr std::uint64_t most_l1_bytes = 1u << 20;
constexpr std::uint64_t most_l2_bytes = 1u << 20;
constexpr std::uint64_t most_of_one_table = 64u << 10;
constexpr std::uint64_t least_of_one_table = 512;

std::uint64_t share(std::uint64_t bytes, std::uint64_t tables) {
  return std::clamp(
      bytes / std::max<std::uint64_t>(tables, 1) / least_of_one_table * least_of_one_table,
      least_of_one_table, most_of_one_table);
}
}  // namespace

SharedTables::SharedTables(Child& file, const Header& header, const Geometry& geometry,
                           const std::vector<std::uint64_t>& active)
    : file_(file), header_(header), geometry_(geometry), active_(active) {}

void SharedTables::add(const Snapshot& snapshot) {
  snapshot.check_l1(header_);
  const HostRange place = snapshot.l1_table();
  if (place.empty()) return;
  longest_ = std::max<std::uint64_t>(longest_, snapshot.l1_entries);
  snapshots_.push_back({place, 1, {}});
  merged_ = false;
}

// Snapshots may have an L1 table in common, all of them at worst.
void SharedTables::merge() {
  if (merged_) return;
  std::ranges::sort(snapshots_, {},
                    [](const L1& l1) { return std::pair(l1.place.start, l1.place.length); });
  std::vector<L1> each;
  for (L1& l1 : snapshots_) {
    if (!each.empty() && each.back().place == l1.place) {
      ++each.back().times;
    } else {
      each.push_back(std::move(l1));
    }
  }
  snapshots_ = std::move(each);
  window_end_ = window_start_ = 0;
  merged_ = true;
}

std::uint64_t SharedTables::l1_entries() const {
  return std::max<std::uint64_t>(longest_, active_.size());
}

std::uint64_t SharedTables::window_size() const {
  return share(most_l1_bytes, snapshots_.size()) / 8;
}

Task<void> SharedTables::load(std::uint64_t index) {
  merge();
  if (index >= window_start_ && index < window_end_) co_return;
  window_end_ = window_start_ = index / window_size() * window_size();
  Buffer bytes(window_size() * 8);
  for (L1& l1 : snapshots_) {
    const std::uint64_t entries = l1.place.length / 8;
    const std::uint64_t left = entries - std::min(entries, window_start_);
    const std::uint64_t count = std::min(window_size(), left);
    l1.entries.resize(count);
    if (count == 0) continue;
    const HostOffset start = l1.place.start + window_start_ * 8;
    co_await read_zero_extended(file_, start, bytes.first(count * 8));
    for (std::uint64_t i = 0; i < count; ++i) {
      l1.entries[i] = load_be<std::uint64_t>(bytes.data() + i * 8);
    }
  }
  window_end_ = window_start_ + window_size();
}

std::uint64_t SharedTables::entry(const L1& l1, std::uint64_t index) const {
  const std::uint64_t i = index - window_start_;
  return i < l1.entries.size() ? l1.entries[i] : 0;
}

std::uint64_t SharedTables::active_entry(std::uint64_t index) const {
  return index < active_.size() ? active_[index] : 0;
}

std::vector<SharedTable> SharedTables::at(std::uint64_t index) const {
  std::vector<SharedTable> named;
  const auto add = [&](std::uint64_t word, std::uint64_t times, bool is_active) {
    const HostOffset offset(word & entry_offset_mask);
    if (offset.bytes() == 0) return;
    if (!offset.is_aligned(geometry_.cluster_size)) {
      throw Error(EIO, fmt::format("the image is corrupt: an L1 entry points to {:#x}, which is "
                                   "not cluster-aligned",
                                   offset.bytes()));
    }
    named.push_back({offset, times, is_active});
  };
  add(active_entry(index), 1, true);
  for (const L1& l1 : snapshots_) add(entry(l1, index), l1.times, false);
  std::ranges::sort(named, {}, &SharedTable::offset);
  std::vector<SharedTable> tables;
  for (const SharedTable& table : named) {
    if (tables.empty() || tables.back().offset != table.offset) {
      tables.push_back(table);
    } else {
      tables.back().times += table.times;
      tables.back().is_active = tables.back().is_active || table.is_active;
    }
  }
  return tables;
}

std::vector<SharedTables::Name> SharedTables::names(std::uint64_t index, HostOffset table) const {
  std::vector<Name> found;
  const auto add = [&](HostOffset l1, std::uint64_t word) {
    if (HostOffset(word & entry_offset_mask) == table) found.push_back({l1 + index * 8, word});
  };
  add(header_.l1_offset, active_entry(index));
  for (const L1& l1 : snapshots_) add(l1.place.start, entry(l1, index));
  return found;
}

std::uint64_t SharedTables::window_length(std::uint64_t cluster) const {
  const std::uint64_t index = geometry_.l1_index(cluster);
  if (index < window_start_ || index >= window_end_) return 0;
  const std::uint64_t left = (std::uint64_t{1} << geometry_.l2_bits) - geometry_.l2_index(cluster);
  return std::min(left, share(most_l2_bytes, at(index).size()) / geometry_.l2_entry_size);
}

Task<SharedWindow> SharedTables::window(std::uint64_t cluster, WantedTables wanted) {
  SharedWindow window;
  co_await load(geometry_.l1_index(cluster));
  window.tables = at(geometry_.l1_index(cluster));
  window.in_snapshot = !std::ranges::all_of(window.tables, &SharedTable::is_active_alone);
  window.first = cluster;
  window.first_index = geometry_.l2_index(cluster);
  window.entry_size = geometry_.l2_entry_size;
  window.count = (std::uint64_t{1} << geometry_.l2_bits) - window.first_index;
  const bool is_wanted = window.in_snapshot || wanted == WantedTables::all;
  if (window.tables.empty() || !is_wanted) co_return window;
  window.count = window_length(cluster);
  const std::uint64_t length = window.count * geometry_.l2_entry_size;
  window.entries.resize(window.tables.size() * length);
  for (std::size_t t = 0; t < window.tables.size(); ++t) {
    const std::span<std::byte> part = std::span(window.entries).subspan(t * length, length);
    co_await read_zero_extended(file_, window.place(t, 0), part);
  }
  co_return window;
}

}  // namespace vise::qcow2
