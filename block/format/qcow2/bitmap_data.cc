#include "format/qcow2/bitmap_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "format/qcow2/metadata_io.h"
#include "vise/buffer.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t largest_read = 1u << 20;  // bytes

HostRange whole_clusters(HostRange range, const Header& header) {
  return range.align_out(header.cluster_size());
}

Task<Buffer> read_table(Child& file, HostRange table) {
  if (!table.ends_by(file.size())) {
    throw Error(EINVAL, fmt::format("its table at {:#x} ends beyond the end of the file",
                                    table.start.bytes()));
  }
  Buffer bytes(table.length);
  co_await file.read(table.start, IoVec(bytes.span()));
  co_return bytes;
}

// The clusters that entry `first` and the following ones name, as far as they lie one after another
// and one read may take them.
HostRange data_run(const Buffer& table, std::uint64_t first, const Header& header) {
  HostRange run =
      decode_bitmap_table_entry(load_be<std::uint64_t>(table.data() + first * 8), header);
  if (run.empty()) return run;
  for (std::uint64_t i = first + 1; i < table.size() / 8 && run.length < largest_read; ++i) {
    const HostRange next =
        decode_bitmap_table_entry(load_be<std::uint64_t>(table.data() + i * 8), header);
    if (next.empty() || next.start != run.end()) break;
    run.length += next.length;
  }
  return run;
}

}  // namespace

std::uint64_t bitmap_table_entries(const DirtyBitmap& bits, const Header& header) {
  return divide_up(bits.serialized_size(), header.cluster_size());
}

Task<DirtyBitmap> read_bitmap_data(Child& file, const Header& header, const BitmapEntry& entry,
                                   BitmapBudget& budget) {
  const std::uint64_t wanted = divide_up(header.virtual_size, entry.granularity());
  if (wanted > budget.bits) {
    throw Error(EFBIG, "there is a limit to the size of all bitmaps, which it would exceed");
  }
  budget.bits -= wanted;
  DirtyBitmap bits(header.virtual_size, entry.granularity());
  const Buffer table = co_await read_table(file, entry.table);
  const std::uint64_t cluster_size = header.cluster_size();
  std::uint64_t next = 0;
  for (std::uint64_t i = 0; i < table.size() / 8; i = next) {
    const HostRange run = data_run(table, i, header);
    next = i + std::max<std::uint64_t>(1, run.length / cluster_size);
    if (run.empty()) {
      // Bit 0 tells the value of all its bits.
      const bool ones = load_be<std::uint64_t>(table.data() + i * 8) != 0;
      if (ones) bits.load_ones(i * cluster_size, cluster_size);
      continue;
    }
    if (run.length > budget.stored_bytes) {
      throw Error(EINVAL, "its table names more data than there is in the file");
    }
    budget.stored_bytes -= run.length;
    Buffer data(run.length);
    co_await read_zero_extended(file, run.start, data.span());
    bits.load(i * cluster_size, data.span());
  }
  co_return bits;
}

Task<std::vector<HostRange>> bitmap_clusters(Child& file, const Header& header,
                                             const BitmapEntry& entry) {
  std::vector<HostRange> clusters;
  if (!entry.table.ends_by(file.size())) co_return clusters;
  const Buffer table = co_await read_table(file, entry.table);
  clusters.push_back(whole_clusters(entry.table, header));
  for (std::uint64_t i = 0; i < table.size(); i += 8) {
    try {
      const HostRange data =
          decode_bitmap_table_entry(load_be<std::uint64_t>(table.data() + i), header);
      if (!data.empty() && data.start.bytes() < file.size()) clusters.push_back(data);
    } catch (const Error&) {
      // What it meant to name stays a leak.
    }
  }
  co_return clusters;
}

}  // namespace vise::qcow2
