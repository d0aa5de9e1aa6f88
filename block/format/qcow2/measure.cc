#include "format/qcow2/measure.h"

#include <algorithm>
#include <cerrno>
#include <string_view>

#include "format/qcow2/bitmap_directory.h"
#include "vise/driver.h"
#include "vise/graph.h"
#include "vise/util/checked.h"

namespace vise::qcow2 {
namespace {

std::uint64_t round_up_to_multiple(std::uint64_t value, std::uint64_t unit) {
  return divide_up(value, unit) * unit;
}

// Whole clusters of the new image in which the source has anything that is not zeros.
Task<std::uint64_t> count_data(Node& source, std::uint64_t size, std::uint64_t cluster_size) {
  std::uint64_t data = 0;
  const std::uint64_t end = std::min(size, source.size());
  for (std::uint64_t offset = 0; offset < end;) {
    const BlockStatus status =
        co_await block_status(source, GuestRange{GuestOffset(offset), end - offset});
    if (status.zero || !status.data) {
      offset += status.length;
      continue;
    }
    // The rest of the last cluster is counted with it.
    const std::uint64_t next = vise::align_up(offset + status.length, cluster_size);
    data += next - vise::align_down(offset, cluster_size);
    offset = next;
  }
  co_return data;
}

// Nothing if `info` is not of an image that can hold bitmaps.
std::optional<std::uint64_t> bitmaps_size(const DriverInfo& info, const Header& header) {
  if (!info.format_specific.is_dict()) return std::nullopt;
  const Value* data = info.format_specific.as_dict().find("data");
  if (data == nullptr || !data->is_dict()) return std::nullopt;
  const Value* compat = data->as_dict().find("compat");
  if (compat == nullptr || *compat != Value("1.1")) return std::nullopt;
  const Value* bitmaps = data->as_dict().find("bitmaps");
  if (bitmaps == nullptr) return 0;

  std::uint64_t clusters = 0;
  std::uint64_t directory = 0;
  for (const Value& bitmap : bitmaps->as_list()) {
    const Value::Dict& fields = bitmap.as_dict();
    const Value::List& flags = fields.find("flags")->as_list();
    // The content of one that was not closed cleanly is not taken over.
    if (std::ranges::find(flags, Value("in-use")) != flags.end()) continue;
    const BitmapSize size = measure_bitmap(header, fields.find("granularity")->as_uint(),
                                           fields.find("name")->as_string().size());
    clusters += size.clusters_bytes;
    directory += size.directory_bytes;
  }
  return clusters + vise::align_up(directory, header.cluster_size());
}

}  // namespace

MeasureResult measure_sizes(const Header& h, std::uint64_t data_bytes) {
  const std::uint64_t cluster = h.cluster_size();
  const std::uint64_t data = vise::align_up(h.virtual_size, cluster);
  const std::uint64_t l2 = round_up_to_multiple(data / cluster, h.l2_entries()) * h.l2_entry_size();
  const std::uint64_t l1 = round_up_to_multiple(l2 / cluster, cluster / 8) * 8;
  const std::uint64_t metadata = cluster + l2 + l1;
  const std::uint64_t counted = (metadata + data) / cluster;
  std::uint64_t blocks = 0;
  std::uint64_t table = 0;
  for (std::uint64_t before = UINT64_MAX; blocks + table != before;) {
    before = blocks + table;
    blocks = divide_up(counted + table + blocks, h.refcount_block_entries());
    table = divide_up(blocks, cluster / 8);
  }
  MeasureResult result;
  result.fully_allocated = metadata + (blocks + table) * cluster + data;
  result.required = result.fully_allocated - data + data_bytes;
  return result;
}

BitmapSize measure_bitmap(const Header& h, std::uint64_t granularity, std::uint64_t name_length) {
  const std::uint64_t bytes = divide_up(divide_up(h.virtual_size, granularity), 8);
  const std::uint64_t data = vise::align_up(bytes, h.cluster_size());
  BitmapSize size;
  size.clusters_bytes = data + vise::align_up(data / h.cluster_size() * 8, h.cluster_size());
  size.directory_bytes = bitmap_entry_size(name_length);
  return size;
}

Task<MeasureResult> measure(MeasureRequest& request) {
  const CreateOptions options = CreateOptions::parse(request.options);
  const Header header = options.header(request.size);
  const std::uint64_t all = vise::align_up(header.virtual_size, header.cluster_size());
  std::uint64_t data = 0;
  if (options.preallocation == Preallocation::falloc ||
      options.preallocation == Preallocation::full) {
    data = all;
  } else if (request.source != nullptr && !options.backing_file.empty()) {
    // What the backing file saves is not known before it is compared.
    data = all;
  } else if (request.source != nullptr) {
    data = co_await count_data(*request.source, header.virtual_size, header.cluster_size());
  }
  MeasureResult result = measure_sizes(header, data);
  if (request.source != nullptr && header.version >= 3) {
    const DriverInfo info = co_await request.source->driver().info();
    result.bitmaps = bitmaps_size(info, header);
  }
  co_return result;
}

}  // namespace vise::qcow2
