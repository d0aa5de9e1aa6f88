// Moving persistent dirty bitmaps, as they are stored: the clusters of their data, their tables,
// the directory. While the image is open for writing all of them are flagged as in use, so that
// nobody trusts their bits; but what is unchanged in memory when the image is closed is not stored
// again, and those that are inconsistent never are. Runs drained.
#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "format/qcow2/bitmap_data.h"
#include "format/qcow2/move_plan.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/relocation.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

namespace {
constexpr std::uint64_t most_at_once = 8u << 20;  // bytes of data
}  // namespace

Task<void> Qcow2::move_bitmaps() {
  if (!header_.bitmaps) co_return;
  std::uint64_t position = 0;  // in the directory
  for (std::size_t i = 0; i < stored_bitmaps_.size(); ++i) {
    co_await begin_operation();
    co_await move_bitmap_data(stored_bitmaps_[i].entry.table);
    co_await move_bitmap_table(stored_bitmaps_[i].entry.table,
                               header_.bitmaps->directory.start + position);
    position += bitmap_entry_size(stored_bitmaps_[i].entry.name.size());
  }
  co_await begin_operation();
  const std::function<Task<void>(HostOffset)> name = [this](HostOffset at) {
    return name_bitmap_directory(at);
  };
  co_await move_table_of_header(header_.bitmaps->directory, name);
}

// An entry of the table names each cluster.
Task<void> Qcow2::move_bitmap_data(HostRange table) {
  Buffer words(table.length);
  co_await read_padded(*file_, table.start, words.span());
  std::vector<Relocation> found;
  std::uint64_t bytes = 0;
  for (std::uint64_t at = 0; at < table.length; at += 8) {
    const auto word = load_be<std::uint64_t>(words.data() + at);
    const HostRange place = decode_bitmap_table_entry(word, header_);
    const bool moves = co_await is_movable(place);
    if (!moves) continue;
    Relocation& relocation = found.emplace_back();
    relocation.old = place;
    relocation.names.push_back({table.start + at, word});
    bytes += place.length;
    if (bytes < most_at_once) continue;
    co_await relocate(found, Names::others);
    co_await begin_operation();
    found.clear();
    bytes = 0;
  }
  if (!found.empty()) co_await relocate(found, Names::others);
}

// The first word of an entry in the directory, at `name`, names it.
Task<void> Qcow2::move_bitmap_table(HostRange table, HostOffset name) {
  const HostRange place = table.align_out(geometry_.cluster_size);
  const bool moves = co_await is_movable(place);
  if (!moves) co_return;
  co_await begin_operation();
  std::vector<Relocation> found(1);
  found[0].old = place;
  found[0].names.push_back({name, table.start.bytes()});
  co_await relocate(found, Names::others);
}

// Where the directory says that tables are.
Task<void> Qcow2::reload_bitmap_tables() {
  const std::vector<BitmapEntry> entries = co_await read_bitmap_directory(*file_, header_);
  for (StoredBitmap& stored : stored_bitmaps_) {
    const auto found = std::ranges::find(entries, stored.entry.name, &BitmapEntry::name);
    if (found != entries.end()) stored.entry.table = found->table;
  }
}

Task<void> Qcow2::name_bitmap_directory(HostOffset at) {
  Header header = header_;
  header.bitmaps->directory.start = at;
  co_await write_header(std::move(header));
}

}  // namespace vise::qcow2
