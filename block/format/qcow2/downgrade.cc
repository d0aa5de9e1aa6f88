// From version 3 to version 2, which knows no zero clusters, no dirty bitmaps and zlib alone, and
// whose snapshots have the size of the disk. What cannot be is refused before anything changes.
#include <cerrno>
#include <utility>

#include <fmt/format.h>

#include "format/qcow2/metadata_io.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/snapshot_table.h"
#include "graph/bitmaps.h"
#include "graph/tracking.h"
#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

Task<void> Qcow2::check_downgrade() {
  // Without compressed clusters, how they would be compressed does not matter.
  const std::uint64_t features = header_.incompatible_features & ~incompatible::compression_type;
  if (features != 0) {
    throw Error(ENOTSUP, fmt::format("version 2 images cannot have the features of this one "
                                     "(incompatible features {:#x})",
                                     features));
  }
  if (const BitmapSet* bitmaps = node_.tracking().bitmaps.get()) {
    for (const auto& bitmap : bitmaps->bitmaps()) {
      if (!bitmap->persistent || bitmap->users == 0) continue;
      throw Error(EBUSY, fmt::format("version 2 images cannot hold dirty bitmaps, and '{}' is in "
                                     "use",
                                     bitmap->name));
    }
  }
  const SnapshotTable table =
      co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
  const bool other_codec = header_.compression != Codec::deflate;
  if (other_codec) co_await require_none_compressed(header_.l1_entries, header_.l1_offset);
  for (const Snapshot& snapshot : table.snapshots) {
    if (snapshot.virtual_size != header_.virtual_size) {
      throw Error(ENOTSUP, fmt::format("snapshot '{}' has a disk of another size, which version 2 "
                                       "images cannot have",
                                       snapshot.name));
    }
    // Programs of its time read the field of 32 bits alone.
    if (snapshot.vm_state_size > UINT32_MAX) {
      throw Error(ENOTSUP, fmt::format("snapshot '{}' has a VM state of {} bytes, more than the {} "
                                       "that version 2 images can have",
                                       snapshot.name, snapshot.vm_state_size, UINT32_MAX));
    }
    snapshot.check_l1(header_);
    if (!other_codec) continue;
    co_await require_none_compressed(snapshot.l1_entries, snapshot.l1_offset)
        .context(fmt::format("snapshot '{}'", snapshot.name));
  }
}

Task<void> Qcow2::require_none_compressed(std::uint64_t l1_entries, HostOffset l1_offset) {
  Buffer l1(l1_entries * 8);
  co_await read_zero_extended(*file_, l1_offset, l1.span());
  Buffer table(geometry_.cluster_size);
  for (std::uint64_t i = 0; i < l1_entries; ++i) {
    const HostOffset offset(load_be<std::uint64_t>(l1.data() + i * 8) & entry_offset_mask);
    if (offset.bytes() == 0) continue;
    co_await read_zero_extended(*file_, offset, table.span());
    for (std::size_t at = 0; at < table.size(); at += 8) {
      if ((load_be<std::uint64_t>(table.data() + at) & entry_compressed) == 0) continue;
      throw Error(ENOTSUP,
                  "it has compressed clusters of a type that version 2 images cannot have (they "
                  "know zlib alone)");
    }
  }
}

Task<void> Qcow2::downgrade(const std::function<void(double)>& report) {
  co_await begin_operation();
  co_await drop_bitmaps();
  co_await expand_zeros(report);
  co_await begin_operation();
  Header header = header_;
  header.version = 2;
  header.incompatible_features &= ~incompatible::compression_type;
  header.compression = Codec::deflate;
  header.compatible_features = 0;
  header.autoclear_features = 0;
  header.unknown_fields.clear();
  co_await write_header(std::move(header));
  geometry_ = Geometry(header_);
}

// Like qemu-img, but without leaks, and not silently: who relies on them needs a full backup next.
Task<void> Qcow2::drop_bitmaps() {
  if (!header_.bitmaps && stored_bitmaps_.empty()) co_return;
  std::string names;
  std::vector<BitmapEntry> dropped;
  for (const StoredBitmap& stored : stored_bitmaps_) {
    names += fmt::format("{}'{}'", names.empty() ? "" : ", ", stored.entry.name);
    dropped.push_back(stored.entry);
  }
  warn(fmt::format("Version 2 images cannot hold dirty bitmaps, these are dropped: {}", names));
  forget_bitmaps();
  co_await switch_bitmaps({}, std::move(dropped));
}

}  // namespace vise::qcow2
