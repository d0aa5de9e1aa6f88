#include "format/qcow2/check_pass.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "format/qcow2/bitmap_directory.h"
#include "format/qcow2/metadata_io.h"
#include "vise/buffer.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

// Where 512-byte clusters end at 2 TiB. It bounds the directory of the counts to 64 MiB.
constexpr std::uint64_t max_clusters = std::uint64_t{1} << 32;

std::uint64_t checked_clusters(std::uint64_t file_length, const Header& header) {
  const std::uint64_t clusters = divide_up(file_length, header.cluster_size());
  if (clusters > max_clusters) {
    throw Error(EFBIG, fmt::format("The file has {} clusters, more than the {} that can be checked",
                                   clusters, max_clusters));
  }
  return clusters;
}

}  // namespace

// A reference may reach less than a cluster beyond the end of the file: hence one more.
CheckPass::CheckPass(Child& file, const Header& header, const CheckRequest& request)
    : references(checked_clusters(file.size(), header) + 1),
      stored(references.size()),
      file_(file),
      header_(header),
      request_(request),
      file_length_(file.size()),
      file_clusters_(references.size() - 1) {}

void CheckPass::report(const std::string& text) const {
  if (request_.on_finding) request_.on_finding(text);
}

void CheckPass::corruption(const std::string& text) {
  ++result.corruptions;
  report("ERROR " + text);
}

void CheckPass::corruption(const std::string& text, Doubt about) {
  corruption(text);
  doubts.push_back(about);
}

// False, with nothing counted, if the range lies a cluster or more beyond the end of the file.
bool CheckPass::add_reference(HostRange range, std::uint64_t times) {
  if (range.empty()) return true;
  const std::uint64_t limit = file_length_ + header_.cluster_size() - 1;
  if (!range.ends_by(limit)) {
    corruption(fmt::format("reference to {} bytes at {:#x}, a cluster or more beyond the end of "
                           "the file at {:#x}",
                           range.length, range.start.bytes(), file_length_),
               {cluster_of(range.start), cluster_of(range.end() - 1)});
    return false;
  }
  const std::uint64_t last = cluster_of(range.end() - 1);
  for (std::uint64_t c = cluster_of(range.start); c <= last; ++c) references.add(c, times);
  return true;
}

void CheckPass::add_metadata(HostRange range, std::uint64_t times) {
  if (range.empty() || !add_reference(range, times)) return;
  const std::uint64_t last = cluster_of(range.end() - 1);
  for (std::uint64_t c = cluster_of(range.start); c <= last; ++c) references.mark(c);
}

Task<void> CheckPass::run(Copied copied) {
  copied_ = copied;
  add_metadata({HostOffset(0), header_.cluster_size()});
  co_await load_refcounts();
  if (header_.crypto_header) add_metadata(*header_.crypto_header);
  co_await count_bitmaps();
  co_await count_l1(header_.l1_table(), Table::active, 1);
  co_await count_snapshots();
  co_await count_l2_tables();
  check_blocks();
  co_await compare();
  result.total_clusters = divide_up(header_.virtual_size, header_.cluster_size());
}

Task<void> CheckPass::count_snapshots() {
  snapshots = co_await SnapshotTable::read(file_, header_, SnapshotTable::Mode::tolerant);
  add_metadata({header_.snapshots_offset, snapshots.length});
  if (snapshots.surplus > 0) {
    ++result.check_errors;
    report(fmt::format("ERROR {} snapshots are beyond the limits or the end of the file",
                       snapshots.surplus));
  }
  if (snapshots.excess_extra > 0) {
    ++result.check_errors;
    report(fmt::format("ERROR {} snapshots have more than {} bytes of extra data",
                       snapshots.excess_extra, max_snapshot_extra));
  }
  for (std::uint64_t i = 0; i < snapshots.short_extra; ++i) {
    corruption("snapshot entry has less extra data than version 3 requires");
  }
  if (header_.has_data_file() && header_.snapshot_count > 0) {
    corruption("image with an external data file has internal snapshots");
  }
  // Snapshots may share an L1 table, all of them at worst; each is read once.
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> tables;
  for (const Snapshot& snapshot : snapshots.snapshots) {
    try {
      snapshot.check_l1(header_);
      ++tables[{snapshot.l1_table().start.bytes(), snapshot.l1_table().length}];
    } catch (const Error& error) {
      corruption(fmt::format("snapshot: {}", error.message()));
    }
  }
  for (const auto& [table, times] : tables) {
    const HostRange range{HostOffset(table.first), table.second};
    co_await count_l1(range, Table::snapshot, times);
  }
}

Task<void> CheckPass::count_bitmaps() {
  if (!header_.bitmaps) co_return;
  std::vector<BitmapEntry> bitmaps;
  std::string error;
  try {
    bitmaps = co_await read_bitmap_directory(file_, header_);
  } catch (const Error& e) {
    if (e.code() != EINVAL) throw;
    error = e.what();
  }
  if (!error.empty()) {
    bitmaps_broken = true;
    corruption(fmt::format("bitmap directory: {}", error));
    co_return;
  }
  add_metadata(header_.bitmaps->directory);
  for (const BitmapEntry& bitmap : bitmaps) co_await count_bitmap_data(bitmap.table);
}

Task<void> CheckPass::count_bitmap_data(HostRange table) {
  if (!table.ends_by(file_length_)) {
    corruption(
        fmt::format("bitmap table at {:#x} ends beyond the end of the file", table.start.bytes()));
    co_return;
  }
  add_metadata(table);
  Buffer buffer(table.length);
  co_await file_.read(table.start, IoVec(buffer.span()));
  for (std::uint64_t i = 0; i < table.length; i += 8) {
    const auto entry = load_be<std::uint64_t>(buffer.data() + i);
    try {
      add_metadata(decode_bitmap_table_entry(entry, header_));
    } catch (const Error& error) {
      corruption(error.message());
    }
  }
}

}  // namespace vise::qcow2
