// Looking up what a write would hit.
#include "format/qcow2/overlap.h"

#include <algorithm>
#include <cassert>

namespace vise::qcow2 {

std::string_view name_of(Metadata kind) {
  switch (kind) {
    case Metadata::main_header:
      return "qcow2_header";
    case Metadata::active_l1:
      return "active L1 table";
    case Metadata::active_l2:
      return "active L2 table";
    case Metadata::refcount_table:
      return "refcount table";
    case Metadata::refcount_block:
      return "refcount block";
    case Metadata::snapshot_table:
      return "snapshot table";
    case Metadata::inactive_l1:
      return "inactive L1 table";
    case Metadata::inactive_l2:
      return "inactive L2 table";
    case Metadata::bitmap_directory:
      return "bitmap directory";
  }
  return "";
}

OverlapGuard::Tables& OverlapGuard::tables_of(Metadata kind) {
  assert(kind == Metadata::active_l2 || kind == Metadata::refcount_block ||
         kind == Metadata::inactive_l2);
  if (kind == Metadata::active_l2) return active_l2_;
  return kind == Metadata::refcount_block ? refcount_blocks_ : inactive_l2_;
}

const OverlapGuard::Tables& OverlapGuard::tables_of(Metadata kind) const {
  return const_cast<OverlapGuard*>(this)->tables_of(kind);
}

void OverlapGuard::add(Metadata kind, HostOffset table) {
  if (table.bytes() == 0) return;
  ++tables_of(kind)[table.bytes() >> header_.cluster_bits];
}

void OverlapGuard::remove(Metadata kind, HostOffset table) {
  Tables& tables = tables_of(kind);
  const auto found = tables.find(table.bytes() >> header_.cluster_bits);
  if (found != tables.end() && --found->second == 0) tables.erase(found);
}

void OverlapGuard::clear(Metadata kind) { tables_of(kind).clear(); }

std::optional<Metadata> OverlapGuard::find(HostRange range, MetadataSet own) const {
  if (checked_.empty() || range.empty()) return std::nullopt;
  const auto matters = [&](Metadata kind) { return checks(kind) && !own.has(kind); };
  const auto hits = [&](const HostRange& table) { return !table.empty() && table.overlaps(range); };
  if (matters(Metadata::main_header) && range.start.bytes() < header_.cluster_size()) {
    return Metadata::main_header;
  }
  if (matters(Metadata::active_l1) && hits(header_.l1_table())) return Metadata::active_l1;
  if (matters(Metadata::refcount_table) && hits(header_.refcount_table())) {
    return Metadata::refcount_table;
  }
  if (matters(Metadata::snapshot_table) && hits(snapshot_table_)) return Metadata::snapshot_table;
  if (matters(Metadata::bitmap_directory) && header_.bitmaps && hits(header_.bitmaps->directory)) {
    return Metadata::bitmap_directory;
  }
  if (matters(Metadata::inactive_l1) && std::ranges::any_of(inactive_l1_, hits)) {
    return Metadata::inactive_l1;
  }
  const std::uint64_t first = range.start.bytes() >> header_.cluster_bits;
  const std::uint64_t last = (range.end() - 1).bytes() >> header_.cluster_bits;
  for (const Metadata kind :
       {Metadata::active_l2, Metadata::refcount_block, Metadata::inactive_l2}) {
    const Tables& tables = tables_of(kind);
    if (!matters(kind) || tables.empty()) continue;
    for (std::uint64_t cluster = first; cluster <= last; ++cluster) {
      if (tables.contains(cluster)) return kind;
    }
  }
  return std::nullopt;
}

}  // namespace vise::qcow2
