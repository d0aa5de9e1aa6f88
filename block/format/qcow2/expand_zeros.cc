// Zeros as version 2 has them. Where nothing is below, an unallocated cluster reads as zeros; above
// a backing image it takes a cluster that holds zeros. Entries change where they lie, those of the
// disk and of all snapshots, since nothing becomes more or less shared. Runs drained, some thousand
// entries at a time; the order of writes (| is a flush):
//
//   zeros, counts of the new clusters | entries | counts of what they no longer refer to lowered
//
// An entry that owns a host cluster keeps it if all who refer to it say "zeros": others may read
// data there (writing zeros over data that a snapshot shares leaves such a pair, and qemu-img's
// amend destroys the snapshot then).
#include <algorithm>
#include <utility>
#include <vector>

#include "format/qcow2/qcow2.h"
#include "format/qcow2/shared_tables.h"
#include "format/qcow2/zero_expansion.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

namespace {

constexpr std::size_t most_changes = 128 << 10;  // entries that change at a time

bool says_zero(std::uint64_t word) {
  return (word & entry_compressed) == 0 && (word & entry_zero) != 0;
}

}  // namespace

/// An entry that says "zeros".
struct Qcow2::ZeroEntry {
  HostOffset place;
  std::uint64_t word = 0;
  SharedTable table;

  HostOffset host() const { return HostOffset(word & entry_offset_mask); }  // 0: it owns none
};

Task<void> Qcow2::expand_zeros(const std::function<void(double)>& report) {
  SharedTables tables = co_await shared_tables();
  space_.forget_packing();
  ZeroExpansion expansion;
  for (std::uint64_t cluster = 0; cluster < tables.clusters();) {
    const SharedWindow window = co_await window_to_change(tables, cluster, WantedTables::all);
    if (!window.entries.empty()) co_await expand_window(window, expansion);
    cluster += window.count;
    report(static_cast<double>(cluster) / static_cast<double>(tables.clusters()));
  }
  co_await carry_out(expansion);
  // What a snapshot alone shared with the disk may be the disk's alone now.
  co_await refresh_copied();
}

Task<void> Qcow2::expand_window(const SharedWindow& window, ZeroExpansion& expansion) {
  std::vector<ZeroEntry> entries;
  for (std::uint64_t i = 0; i < window.count; ++i) {
    entries.clear();
    for (std::size_t t = 0; t < window.tables.size(); ++t) {
      const auto word = load_be<std::uint64_t>(window.entry(t, i).data());
      if (!says_zero(word)) continue;
      guard_.telling([&] { Descriptor::decode(word, 0, geometry_); });
      entries.push_back({window.place(t, i), word, window.tables[t]});
    }
    if (entries.empty()) continue;
    co_await plan_expansion(window.first + i, entries, expansion);
    if (expansion.changes.size() >= most_changes) co_await carry_out(expansion);
  }
}

// What an unallocated cluster would show, in the disk or in a snapshot of it. How long a backing
// image is that is not open, nobody knows.
bool Qcow2::may_show_backing(std::uint64_t cluster) const {
  if (!backing_) return !header_.backing_name.empty();
  return geometry_.guest_offset(cluster).bytes() < backing_->size();
}

// All entries that one guest cluster has and that say "zeros".
Task<void> Qcow2::plan_expansion(std::uint64_t cluster, std::span<const ZeroEntry> entries,
                                 ZeroExpansion& expansion) {
  const bool needs_data = may_show_backing(cluster);
  std::optional<std::size_t> fresh;
  for (const ZeroEntry& entry : entries) {
    if (needs_data) {
      const bool keeps = co_await owns_host(entry, entries);
      if (keeps) {
        expansion.changes.push_back({entry.place, entry.word & ~entry_zero, std::nullopt});
        expansion.kept.push_back(entry.host());
        continue;
      }
    }
    const HostRange old{entry.host(), geometry_.cluster_size};
    // An entry that points to metadata does so wrongly: better a leak than a free table.
    if (old.start.bytes() != 0 && !guard_.find(old)) {
      expansion.dropped.add(old.start.bytes() >> geometry_.cluster_bits,
                            static_cast<std::uint32_t>(entry.table.times));
    }
    if (!needs_data) {
      expansion.changes.push_back({entry.place, 0, std::nullopt});
      continue;
    }
    // More than we see may refer to the table, if its count says so; a count too high is a leak.
    const std::uint64_t counted =
        co_await refcounts_.get(entry.table.offset.bytes() >> geometry_.cluster_bits);
    const std::uint64_t references = std::max(counted, entry.table.times);
    if (!fresh || expansion.fresh[*fresh].references > refcounts_.max_count() - references) {
      fresh = expansion.fresh.size();
      expansion.fresh.push_back({0, entry.table.is_active, HostOffset(0)});
    }
    expansion.fresh[*fresh].references += references;
    expansion.changes.push_back({entry.place, 0, fresh});
  }
}

// True if nobody but `entries` refers to the host cluster of that one.
Task<bool> Qcow2::owns_host(const ZeroEntry& entry, std::span<const ZeroEntry> entries) {
  const HostRange host{entry.host(), geometry_.cluster_size};
  if (host.start.bytes() == 0 || host.start.bytes() >= file_->size()) co_return false;
  if (guard_.find(host)) co_return false;
  std::uint64_t uses = 0;
  for (const ZeroEntry& other : entries) {
    if (other.host() == host.start) uses += other.table.times;
  }
  const std::uint64_t count = co_await refcounts_.get(host.start.bytes() >> geometry_.cluster_bits);
  co_return count == uses;
}

// Starts `expansion` anew.
Task<void> Qcow2::carry_out(ZeroExpansion& expansion) {
  if (expansion.changes.empty()) co_return;
  co_await place_zeros(expansion);
  co_await commit_counts();
  std::exception_ptr failure;
  try {
    co_await change_entries(expansion);
    co_await file_->flush();
  } catch (...) {
    failure = std::current_exception();
  }
  // After a failure the disk may name what it did or the new clusters: both stay counted.
  std::vector<std::uint64_t> l1 = mapping_.l1();
  mapping_.replace(std::move(l1));
  if (failure) std::rethrow_exception(failure);
  co_await release(expansion.dropped);
  expansion = ZeroExpansion();
}

// Space for the new clusters, their zeros and their counts.
Task<void> Qcow2::place_zeros(ZeroExpansion& expansion) {
  std::ranges::sort(expansion.kept);
  const auto repeated = std::ranges::unique(expansion.kept);
  expansion.kept.erase(repeated.begin(), repeated.end());
  for (std::size_t i = 0; i < expansion.kept.size();) {
    HostRange range{expansion.kept[i], 0};
    for (; i < expansion.kept.size() && expansion.kept[i] == range.end(); ++i) {
      range.length += geometry_.cluster_size;
    }
    co_await file_->write_zeroes(range);
  }

  References raised;
  std::vector<HostRange> taken;
  std::exception_ptr failure;
  try {
    for (std::size_t placed = 0; placed < expansion.fresh.size();) {
      const HostRange space = co_await space_.allocate_clusters(expansion.fresh.size() - placed);
      taken.push_back(space);
      co_await file_->write_zeroes(space, {.may_unmap = true});
      for (HostOffset host = space.start; host < space.end(); host += geometry_.cluster_size) {
        ZeroExpansion::Fresh& fresh = expansion.fresh[placed++];
        fresh.host = host;
        const std::uint64_t more = fresh.references - 1;
        if (more > 0) {
          raised.add(host.bytes() >> geometry_.cluster_bits, static_cast<std::uint32_t>(more));
        }
      }
    }
    co_await raised.check_raise(refcounts_);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    for (const HostRange& space : taken) space_.free_unlinked(space);
    std::rethrow_exception(failure);
  }
  co_await raised.raise(refcounts_);
}

Task<void> Qcow2::change_entries(const ZeroExpansion& expansion) {
  std::vector<NewName> names;
  names.reserve(expansion.changes.size());
  for (const ZeroExpansion::Change& change : expansion.changes) {
    std::uint64_t word = change.word;
    if (change.fresh) {
      const ZeroExpansion::Fresh& fresh = expansion.fresh[*change.fresh];
      const bool is_own = fresh.is_active && fresh.references == 1;
      word = fresh.host.bytes() | (is_own ? entry_copied : 0);
    }
    names.push_back({change.place, word});
  }
  std::ranges::sort(names, {}, &NewName::place);
  co_await write_names(names, Event::l2_update);
}

}  // namespace vise::qcow2
