// What happens when the image turns out to contradict itself: a write that would hit metadata is
// not done, an entry that cannot be right is not used, the image is marked corrupt, and the node
// takes no more requests (qcow2.md 10.5).
#include <cerrno>

#include <fmt/format.h>

#include "format/qcow2/metadata_io.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/snapshot_table.h"
#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

void Qcow2::require_sound() const {
  if (corrupt_) {
    throw Error(ENOMEDIUM,
                "the image has been found corrupt and marked so; it takes no more requests");
  }
}

void Qcow2::require_running() const {
  require_sound();
  if (stopped_) {
    throw Error(EIO,
                "a change of the header failed and could not be taken back: nothing more can be "
                "written");
  }
}

void Qcow2::require_writable() const {
  require_sound();
  if (read_only_) throw Error(EROFS, "the image is open read-only");
  require_running();
}

// Nothing of the data file is metadata.
std::optional<Metadata> Qcow2::data_overlap(HostRange range) const {
  if (data_file_) return std::nullopt;
  return guard_.find(range);
}

// Where the image is open for writing, what is in its tables can no longer be trusted with
// anything; a reader goes on with what there is.
void Qcow2::found_corrupt(std::string_view what, std::optional<HostRange> range) {
  constexpr std::string_view prefix = "the image is corrupt: ";
  if (what.starts_with(prefix)) what.remove_prefix(prefix.size());
  const bool fatal = !read_only_;
  const bool known = fatal ? corrupt_ : corruption_told_;
  if (known) return;
  corruption_told_ = true;
  Graph& graph = node_.graph();
  if (graph.on_image_corrupted) {
    graph.on_image_corrupted(
        {.node = node_, .message = std::string(what), .range = range, .fatal = fatal});
  } else if (fatal) {
    warn(fmt::format("Marking image as corrupt: {}; further corruption events will be suppressed",
                     what));
  }
  if (!fatal) return;
  corrupt_ = true;
  stopped_ = true;
  marking_.spawn(mark_corrupt());
}

Task<void> Qcow2::refuse_write(Metadata kind, HostRange range) {
  const std::string message =
      fmt::format("Preventing invalid write on metadata (overlaps with {})", name_of(kind));
  found_corrupt(message, range);
  co_await marking_.join();
  throw Error(EIO, fmt::format("the image is corrupt: {} bytes at {:#x}: {}", range.length,
                               range.start.bytes(), message));
}

// Version 2 has no place for the mark. Without it the next writer finds out for itself.
Task<void> Qcow2::mark_corrupt() {
  if (header_.version < 3) co_return;
  header_.incompatible_features |= incompatible::corrupt;
  Buffer field(8);
  store_be(field.data(), header_.incompatible_features);
  try {
    co_await file_->write(HostOffset(field_offset::incompatible_features),
                          ConstIoVec(field.span()));
    co_await file_->flush();
  } catch (const Error& error) {
    warn(fmt::format("The image could not be marked corrupt: {}", error.message()));
  }
}

// Before operations that rewrite tables as a whole.
Task<void> Qcow2::guard_tables() {
  const HostRange l1 = header_.l1_table();
  if (const auto hit = guard_.find(l1, Metadata::active_l1)) co_await refuse_write(*hit, l1);
  for (const std::uint64_t entry : mapping_.l1()) {
    if ((entry & entry_offset_mask) == 0) continue;
    const HostRange table{HostOffset(entry & entry_offset_mask), geometry_.cluster_size};
    const auto hit = guard_.find(table, Metadata::active_l2);
    if (hit) co_await refuse_write(*hit, table);
  }
}

// The tables of the snapshots are where `table` says from now on.
Task<void> Qcow2::guard_snapshots(const SnapshotTable& table) {
  const std::uint64_t length = table.snapshots.empty() ? 0 : table.encode().size();
  guard_.set_snapshot_table({header_.snapshots_offset, length});
  std::vector<HostRange> l1_tables;
  guard_.clear(Metadata::inactive_l2);
  for (const Snapshot& snapshot : table.snapshots) {
    try {
      snapshot.check_l1(header_);
    } catch (const Error&) {
      continue;  // what cannot be read protects nothing
    }
    l1_tables.push_back(snapshot.l1_table());
    if (!overlap_checks_wanted_.has(Metadata::inactive_l2)) continue;
    Buffer entries(snapshot.l1_table().length);
    co_await read_zero_extended(*file_, snapshot.l1_offset, entries.span());
    for (std::size_t at = 0; at < entries.size(); at += 8) {
      const auto entry = load_be<std::uint64_t>(entries.data() + at);
      guard_.add(Metadata::inactive_l2, HostOffset(entry & entry_offset_mask));
    }
  }
  guard_.set_inactive_l1(std::move(l1_tables));
}

// Tables that are not looked after by the guard, and count as free, would be given out as space.
Task<void> Qcow2::require_counted_tables() {
  struct Table {
    HostRange range;
    Metadata kind;
  };
  for (const Table& table : {Table{{HostOffset(0), 1}, Metadata::main_header},
                             Table{header_.l1_table(), Metadata::active_l1},
                             Table{header_.refcount_table(), Metadata::refcount_table}}) {
    if (table.range.empty() || guard_.checks(table.kind)) continue;
    const std::uint64_t last = (table.range.end() - 1).bytes() >> geometry_.cluster_bits;
    for (std::uint64_t c = table.range.start.bytes() >> geometry_.cluster_bits; c <= last; ++c) {
      const std::uint64_t count = co_await refcounts_.get(c);
      if (count == 0) {
        throw Error(EIO, fmt::format("the image is corrupt: host cluster {} holds metadata but "
                                     "counts as free",
                                     c));
      }
    }
  }
}

}  // namespace vise::qcow2
