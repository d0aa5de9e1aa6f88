// Changing the size of the disk.
#include <algorithm>
#include <cerrno>

#include <fmt/format.h>

#include "format/qcow2/metadata_io.h"
#include "format/qcow2/qcow2.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

namespace {
constexpr std::uint64_t most_l1_bytes = 32u << 20;  // the format's limit as every reader has it
}

Task<void> Qcow2::truncate(std::uint64_t size, TruncateOptions options) {
  require_writable();
  if (!options.exact) size = align_up(size, std::uint64_t{512});
  if (size % 512 != 0) throw Error(EINVAL, "the size must be a multiple of 512 bytes");
  const std::uint64_t old_size = header_.virtual_size;
  if (size == old_size) co_return;
  if (header_.snapshot_count > 0 && header_.version < 3) {
    // There, snapshots need not say how large their disk was.
    throw Error(ENOTSUP, "a version 2 image with internal snapshots cannot be resized");
  }
  check_bitmaps_can_resize(size);
  if (size < old_size) {
    if (!options.allow_shrink) throw Error(EINVAL, "the size would decrease");
    if (options.preallocation != Preallocation::off) {
      throw Error(ENOTSUP, "preallocation has no meaning when an image shrinks");
    }
    co_await shrink(size);
  } else {
    co_await grow(size, options.preallocation);
  }
}

// The larger L1 table is stable before the size that needs it.
Task<void> Qcow2::grow(std::uint64_t size, Preallocation preallocation) {
  const std::uint64_t coverage = header_.l2_coverage();
  const std::uint64_t entries = divide_up(size, coverage);
  if (entries * 8 > most_l1_bytes) {
    throw Error(EFBIG,
                fmt::format("a disk of {} bytes needs an L1 table of more than 32 MiB", size));
  }
  const std::uint64_t old_size = header_.virtual_size;
  const std::uint64_t backing_end = backing_ ? std::min(backing_->size(), size) : 0;
  const bool hides_by_clusters = for_file(preallocation) != Preallocation::off;
  if (backing_end > old_size && !geometry_.zero_flag && !hides_by_clusters) {
    throw Error(ENOTSUP,
                "a version 2 image cannot hide the longer backing image when it grows, except with "
                "preallocation falloc or full");
  }
  if (entries > header_.l1_entries) co_await grow_l1(entries);

  const GuestOffset first_new(align_up(old_size, geometry_.cluster_size));
  const GuestRange added{first_new, size > first_new.bytes() ? size - first_new.bytes() : 0};
  // The metadata of a raw data file is complete at all times.
  const bool raw_data_file = (header_.autoclear_features & autoclear::raw_data_file) != 0;
  if (raw_data_file && preallocation == Preallocation::off) {
    preallocation = Preallocation::metadata;
  }
  header_.virtual_size = size;
  std::exception_ptr failure;
  try {
    if (data_file_ && data_file_->size() < size) {
      co_await data_file_->truncate(size, {.preallocation = for_file(preallocation)});
    }
    // The state of a virtual machine that apply brought back lies there.
    if (added.length > 0) co_await clear(added, Clearing::discard_fully);
    co_await zero_tail(old_size, std::max(backing_end, old_size));
    if (preallocation != Preallocation::off && added.length > 0) {
      co_await preallocate(added, preallocation);
    }
    co_await commit();
    co_await write_size(old_size, size);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    try {
      if (added.length > 0 && !stopped_) co_await clear(added, Clearing::discard_fully);
    } catch (const Error&) {
      // Space that the next growth gives back; the first failure is the one to report.
    }
    header_.virtual_size = old_size;
    std::rethrow_exception(failure);
  }
}

// What was cut off by an earlier shrink inside a cluster, and what a longer backing image has
// there, must not show up in the added part of the disk.
Task<void> Qcow2::zero_tail(std::uint64_t from, std::uint64_t backing_end) {
  const std::uint64_t cluster_size = geometry_.cluster_size;
  const std::uint64_t partial_end = std::min(align_up(from, cluster_size), header_.virtual_size);
  if (partial_end > from) {
    const Descriptor last = co_await mapping_.get(geometry_.cluster_of(GuestOffset(from)));
    const bool shows_nothing =
        last.is_zero(geometry_) || (last.is_unallocated() && backing_end <= from);
    if (!shows_nothing) {
      const Buffer zeroes = Buffer::zeroed(partial_end - from);
      co_await write_allocating(GuestOffset(from), ConstIoVec(zeroes.span()));
    }
  }
  // Version 2 has no zeros to say so, but grows then with clusters that hold them.
  if (backing_end > partial_end && geometry_.zero_flag) {
    const std::uint64_t end = std::min(align_up(backing_end, cluster_size), header_.virtual_size);
    co_await clear({GuestOffset(partial_end), end - partial_end}, Clearing::zero_unmap);
  }
}

Task<void> Qcow2::grow_l1(std::uint64_t entries) {
  TicketQueue::Ticket ticket = tickets_.take();
  co_await ticket.turn();
  co_await commit();  // so that the old table on disk is what is in memory
  const std::uint64_t clusters = divide_up(entries * 8, geometry_.cluster_size);
  co_await file_->event(Event::l1_grow_alloc_table);
  const HostRange space = co_await space_.allocate_contiguous(clusters);
  co_await switch_l1(entries, space);
}

// From now on the active L1 table lies in `space`; what the old one says is on disk.
Task<void> Qcow2::switch_l1(std::uint64_t entries, HostRange space) {
  const HostRange old_table = header_.l1_table();
  std::vector<std::uint64_t>& l1 = mapping_.l1();
  Buffer bytes = Buffer::zeroed(space.length);
  for (std::size_t i = 0; i < l1.size(); ++i) store_be(bytes.data() + i * 8, l1[i]);
  co_await file_->event(Event::l1_grow_write_table);
  co_await file_->write(space.start, ConstIoVec(bytes.span()));
  co_await commit_counts();
  const auto fields = [](std::uint64_t count, HostOffset offset) {
    Buffer table(12);
    BigEndianWriter out(table.span());
    out.u32(static_cast<std::uint32_t>(count));
    out.u64(offset.bytes());
    return table;
  };
  const Buffer before = fields(header_.l1_entries, header_.l1_offset);
  const Buffer after = fields(entries, space.start);
  std::exception_ptr failure;
  try {
    co_await file_->event(Event::l1_grow_activate_table);
    co_await replace_stable(*file_, HostOffset(field_offset::l1_table), before.span(), after.span(),
                            stopped_);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    if (!stopped_) space_.free_unlinked(space);
    std::rethrow_exception(failure);
  }
  l1.resize(entries);
  header_.l1_entries = static_cast<std::uint32_t>(entries);
  header_.l1_offset = space.start;
  if (old_table.length > 0) space_.free_unlinked(old_table);
}

Task<void> Qcow2::write_size(std::uint64_t before, std::uint64_t after) {
  Buffer old_field(8);
  Buffer field(8);
  store_be(old_field.data(), before);
  store_be(field.data(), after);
  co_await replace_stable(*file_, HostOffset(field_offset::virtual_size), old_field.span(),
                          field.span(), stopped_);
}

// What a shrink leaves of its last cluster would be seen again by other programs that grow the
// disk.
Task<void> Qcow2::zero_cut_off(GuestRange range) {
  const Descriptor last = co_await mapping_.get(geometry_.cluster_of(range.start));
  if (!last.compressed && last.allocated == 0) co_return;
  range.length = std::min(range.length, header_.virtual_size - range.start.bytes());
  const Buffer zeroes = Buffer::zeroed(range.length);
  co_await write_allocating(range.start, ConstIoVec(zeroes.span()));
}

Task<void> Qcow2::shrink(std::uint64_t size) {
  const std::uint64_t kept = divide_up(size, geometry_.cluster_size);
  const GuestOffset from = geometry_.guest_offset(kept);
  const std::uint64_t old_end = align_up(header_.virtual_size, geometry_.cluster_size);
  if (from.bytes() < old_end) {
    co_await clear({from, header_.virtual_size - from.bytes()}, Clearing::discard_fully);
  }
  if (size < from.bytes()) co_await zero_cut_off({GuestOffset(size), from.bytes() - size});
  co_await file_->event(Event::l1_shrink_free_l2_clusters);
  mapping_.drop_tables(divide_up(size, header_.l2_coverage()));
  co_await file_->event(Event::l1_shrink_write_table);
  co_await commit();
  co_await write_size(header_.virtual_size, size);
  header_.virtual_size = size;
  if (data_file_ && data_file_->size() > size) co_await data_file_->truncate(size);
  co_await space_.reclaim();
  co_await commit_counts();
  co_await cut_free_end();
}

// Gives back the free clusters at the end of the file. Their counts are stable. Nobody allocates
// meanwhile, but clusters behind the end of the file may be in use, their data still on its way.
Task<void> Qcow2::cut_free_end() {
  std::uint64_t end =
      std::max(divide_up(file_->size(), geometry_.cluster_size), refcounts_.scan_position());
  while (end > 1) {
    const std::uint64_t count = co_await refcounts_.get(end - 1);
    if (count != 0) break;
    --end;
  }
  if (end * geometry_.cluster_size < file_->size()) {
    co_await file_->truncate(end * geometry_.cluster_size);
  }
}

}  // namespace vise::qcow2
