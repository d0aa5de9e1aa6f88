// COPIED flags of the active tables: set where, and only where, the refcount is 1.
#include <fmt/format.h>

#include "format/qcow2/metadata_io.h"
#include "format/qcow2/raw_entry.h"
#include "format/qcow2/repair.h"
#include "vise/buffer.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

// Leaks that went away may have changed what the flag has to be; but where more than leaks is
// wrong, the caller has not asked for it.
bool Repairer::copied_may_be_fixed() const {
  return repairs_all() || (pass_.result.corruptions == 0 && pass_.result.check_errors == 0);
}

Task<void> Repairer::fix_copied() {
  if (!copied_may_be_fixed()) co_return;
  std::vector<std::byte> l1(header_.l1_table().length);
  co_await read_zero_extended(file_, header_.l1_offset, l1);
  co_await fix_copied_l1(l1);
  for (const L2Use& use : pass_.l2_tables) {
    if (use.active > 0) co_await fix_copied_l2(use.offset);
  }
  co_await file_.flush();
}

Task<void> Repairer::fix_copied_l1(std::vector<std::byte>& l1) {
  std::size_t first = l1.size();
  std::size_t end = 0;
  for (std::size_t at = 0; at < l1.size(); at += 8) {
    const auto entry = load_be<std::uint64_t>(&l1[at]);
    const HostOffset offset(entry & raw_entry::offset_mask);
    if (offset.bytes() == 0) continue;
    const std::uint64_t count = pass_.stored.get(pass_.cluster_of(offset));
    if ((count == 1) == ((entry & raw_entry::copied) != 0)) continue;
    report(fmt::format("Repairing OFLAG_COPIED L2 cluster: l1_index={} l1_entry={:x} refcount={}",
                       at / 8, entry, count));
    store_be(&l1[at], entry ^ raw_entry::copied);
    ++corruptions_fixed;
    first = std::min(first, at);
    end = at + 8;
  }
  if (first >= end) co_return;
  co_await file_.write(header_.l1_offset + first,
                       ConstIoVec(std::span(l1).subspan(first, end - first)));
}

// True if the entry has changed.
bool Repairer::fix_copied_entry(std::byte* entry) {
  const auto word = load_be<std::uint64_t>(entry);
  if ((word & raw_entry::compressed) != 0) return false;
  const std::uint64_t offset = word & raw_entry::offset_mask;
  // Allocated clusters of a data file belong to the image alone.
  if (offset == 0) return false;
  const std::uint64_t count =
      header_.has_data_file() ? 1 : pass_.stored.get(pass_.cluster_of(HostOffset(offset)));
  if ((count == 1) == ((word & raw_entry::copied) != 0)) return false;
  report(
      fmt::format("Repairing OFLAG_COPIED data cluster: l2_entry={:x} refcount={}", word, count));
  store_be(entry, word ^ raw_entry::copied);
  ++corruptions_fixed;
  return true;
}

Task<void> Repairer::fix_copied_l2(HostOffset table) {
  Buffer bytes(header_.cluster_size());
  co_await read_zero_extended(file_, table, bytes.span());
  const unsigned entry_size = header_.l2_entry_size();
  std::uint64_t first = bytes.size();
  std::uint64_t end = 0;
  for (std::uint64_t at = 0; at < bytes.size(); at += entry_size) {
    if (!fix_copied_entry(bytes.data() + at)) continue;
    first = std::min(first, at);
    end = at + entry_size;
  }
  if (first >= end) co_return;
  co_await file_.write(table + first, ConstIoVec(bytes.span().subspan(first, end - first)));
}

}  // namespace vise::qcow2
