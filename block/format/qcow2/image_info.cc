#include "format/qcow2/image_info.h"

#include <utility>

#include "vise/util/checked.h"

namespace vise::qcow2 {
namespace {

Value format_specific(const Header& h, const std::vector<BitmapEntry>& bitmaps) {
  Value::Dict data;
  data.set("compat", h.version == 2 ? "0.10" : "1.1");
  if (!h.data_file_name.empty() && h.has_data_file()) data.set("data-file", h.data_file_name);
  if (h.has_data_file()) {
    data.set("data-file-raw", (h.autoclear_features & autoclear::raw_data_file) != 0);
  }
  if (h.version >= 3) {
    data.set("extended-l2", h.extended_l2());
    data.set("lazy-refcounts", (h.compatible_features & compatible::lazy_refcounts) != 0);
    data.set("corrupt", (h.incompatible_features & incompatible::corrupt) != 0);
  }
  data.set("refcount-bits", h.refcount_bits());
  if (h.crypt_method != 0) {
    Value::Dict encrypt;
    encrypt.set("format", h.crypt_method == 1 ? "aes" : "luks");
    data.set("encrypt", std::move(encrypt));
  }
  if (!bitmaps.empty()) {
    Value::List list;
    for (const BitmapEntry& bitmap : bitmaps) list.push_back(bitmap.info());
    data.set("bitmaps", std::move(list));
  }
  data.set("compression-type", h.compression == Codec::zstd ? "zstd" : "zlib");

  Value::Dict specific;
  specific.set("type", "qcow2");
  specific.set("data", std::move(data));
  return specific;
}

}  // namespace

std::uint64_t vm_state_offset(const Header& header) {
  return divide_up(header.virtual_size, header.l2_coverage()) * header.l2_coverage();
}

DriverInfo image_info(const Header& header, const SnapshotTable& snapshots,
                      const std::vector<BitmapEntry>& bitmaps) {
  DriverInfo info;
  info.cluster_size = header.cluster_size();
  info.vm_state_offset = vm_state_offset(header);
  info.dirty = (header.incompatible_features & incompatible::dirty) != 0;
  info.encrypted = header.crypt_method != 0;
  if (!header.backing_name.empty()) {
    info.backing_filename = header.backing_name;
    if (!header.backing_format.empty()) info.backing_format = header.backing_format;
  }
  if (!snapshots.snapshots.empty()) {
    Value::List list;
    for (const Snapshot& snapshot : snapshots.snapshots) list.push_back(snapshot.info());
    info.snapshots = std::move(list);
  }
  info.format_specific = format_specific(header, bitmaps);
  return info;
}

}  // namespace vise::qcow2
