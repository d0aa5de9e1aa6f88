#include "format/qcow2/repair.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "format/qcow2/metadata_io.h"
#include "format/qcow2/refcount_packing.h"
#include "vise/buffer.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t block_offset_mask = ~std::uint64_t{0x1ff};

}  // namespace

Task<void> Repairer::run() {
  if (repairs_all()) {
    co_await drop_bitmaps();
    co_await fix_unaligned_zeroes();
  }
  const SnapshotTable& snapshots = pass_.snapshots;
  const bool new_snapshot_table =
      snapshots.short_extra + snapshots.excess_extra + snapshots.surplus > 0;
  if (repairs_all() && (pass_.needs_rebuild || new_snapshot_table)) {
    co_await rebuild();
  } else {
    if (repairs_all()) co_await write_counts(Counts::raise);
    co_await write_counts(Counts::lower);
  }
  co_await fix_copied();
}

Task<void> Repairer::write_header_field(std::uint64_t offset, std::span<const std::byte> bytes) {
  co_await file_.flush();
  co_await file_.write(HostOffset(offset), ConstIoVec(bytes));
  co_await file_.flush();
}

// A directory that cannot be read keeps the whole image from being opened elsewhere.
Task<void> Repairer::drop_bitmaps() {
  if (!pass_.bitmaps_broken) co_return;
  report("Dropping bitmaps whose directory is damaged");
  header_.bitmaps.reset();
  header_.autoclear_features &= ~autoclear::bitmaps;
  const std::vector<std::byte> cluster = header_.encode();
  co_await file_.write(HostOffset(0), ConstIoVec(std::span(cluster)));
  co_await file_.flush();
  ++corruptions_fixed;
}

Task<void> Repairer::fix_unaligned_zeroes() {
  if (pass_.unaligned_zeroes.empty()) co_return;
  for (const EntryFix& fix : pass_.unaligned_zeroes) {
    std::array<std::byte, 8> bytes;
    store_be(bytes.data(), fix.word);
    report(fmt::format("Repairing unaligned preallocated cluster: L2 entry at {:#x}",
                       fix.offset.bytes()));
    co_await file_.write(fix.offset, ConstIoVec(std::span<const std::byte>(bytes)));
    ++corruptions_fixed;
  }
  co_await file_.flush();
}

// Counts that change in place, block by block. A count that cannot be stored stays as it is.
Task<void> Repairer::write_counts(Counts direction) {
  const std::uint64_t per_block = header_.refcount_block_entries();
  std::vector<CountChange> wanted;
  for (const CountChange& change : pass_.changes) {
    const bool raises = change.references > change.stored;
    if (raises != (direction == Counts::raise)) continue;
    if (change.references > header_.refcount_max()) continue;
    report(fmt::format("Repairing cluster {} refcount={} reference={}", change.cluster,
                       change.stored, change.references));
    pass_.stored.set(change.cluster, change.references);
    wanted.push_back(change);
  }
  for (std::size_t i = 0; i < wanted.size();) {
    const std::uint64_t index = wanted[i].cluster / per_block;
    std::size_t end = i;
    while (end < wanted.size() && wanted[end].cluster / per_block == index) ++end;
    co_await write_block(index, std::span(wanted).subspan(i, end - i));
    i = end;
  }
  (direction == Counts::raise ? corruptions_fixed : leaks_fixed) += wanted.size();
  if (!wanted.empty()) co_await file_.flush();
}

Task<void> Repairer::write_block(std::uint64_t index, std::span<const CountChange> changes) {
  const HostOffset offset(pass_.refcount_table[index] & block_offset_mask);
  Buffer block(header_.cluster_size());
  co_await read_zero_extended(file_, offset, block.span());
  for (const CountChange& change : changes) {
    store_refcount(block.data(), header_.refcount_order,
                   change.cluster % header_.refcount_block_entries(), change.references);
  }
  co_await file_.write(offset, ConstIoVec(block.span()));
}

}  // namespace vise::qcow2
