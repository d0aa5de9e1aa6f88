// The first cluster as QEMU would write it (qcow2.md 2.4, 2.5).
#include <fmt/format.h>

#include <array>
#include <cassert>
#include <cerrno>
#include <string_view>

#include "format/qcow2/header.h"
#include "format/qcow2/header_layout.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

// QEMU leaves the table out of clusters that it would half fill.
constexpr std::uint64_t min_cluster_for_names = 4096 + 1;

enum class FeatureWord : std::uint8_t { incompatible = 0, compatible = 1, autoclear = 2 };
constexpr std::uint8_t incomplete_bit = 62;
static_assert(incompatible::incomplete == std::uint64_t{1} << incomplete_bit);

struct FeatureName {
  FeatureWord word;
  std::uint8_t bit;
  std::string_view name;
};
constexpr std::array<FeatureName, 8> feature_names = {{
    {FeatureWord::incompatible, 0, "dirty bit"},
    {FeatureWord::incompatible, 1, "corrupt bit"},
    {FeatureWord::incompatible, 2, "external data file"},
    {FeatureWord::incompatible, 3, "compression type"},
    {FeatureWord::incompatible, 4, "extended L2 entries"},
    {FeatureWord::compatible, 0, "lazy refcounts"},
    {FeatureWord::autoclear, 0, "bitmaps"},
    {FeatureWord::autoclear, 1, "raw external data"},
}};
constexpr FeatureName incomplete_name = {FeatureWord::incompatible, incomplete_bit,
                                         "incomplete image"};

std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Collects the first cluster; refuses what does not fit.
class ClusterWriter {
 public:
  explicit ClusterWriter(std::uint64_t cluster_size) : cluster_(cluster_size), out_(cluster_) {}

  BigEndianWriter& room_for(std::uint64_t length) {
    if (length > out_.remaining()) {
      throw Error(ENOSPC, fmt::format("Header, extensions and backing file name do not fit the "
                                      "first cluster of {} bytes",
                                      cluster_.size()));
    }
    return out_;
  }
  void extension(std::uint32_t type, std::span<const std::byte> data) {
    BigEndianWriter& out = room_for(8 + align_up(data.size(), 8));
    out.u32(type);
    out.u32(static_cast<std::uint32_t>(data.size()));
    out.bytes(data);
    out.zeroes(align_up(data.size(), 8) - data.size());
  }
  std::uint64_t remaining() const { return out_.remaining(); }
  std::uint64_t position() const { return out_.position(); }
  std::vector<std::byte> take() { return std::move(cluster_); }
  std::span<std::byte> bytes() { return cluster_; }

 private:
  std::vector<std::byte> cluster_;
  BigEndianWriter out_;
};

void append_feature_name(std::vector<std::byte>& table, const FeatureName& feature) {
  table.push_back(static_cast<std::byte>(feature.word));
  table.push_back(static_cast<std::byte>(feature.bit));
  const auto name = as_bytes(feature.name);
  table.insert(table.end(), name.begin(), name.end());
  table.resize(table.size() + feature_name_length - name.size());
}

std::vector<std::byte> feature_name_table(const Header& h, std::uint64_t room) {
  std::vector<std::byte> table;
  if (h.version < 3) return table;
  if (h.cluster_size() >= min_cluster_for_names) {
    for (const FeatureName& feature : feature_names) append_feature_name(table, feature);
  }
  const bool fits = table.size() + feature_entry_size + 8 <= room;
  if ((h.incompatible_features & incompatible::incomplete) != 0 && fits) {
    append_feature_name(table, incomplete_name);
  }
  return table;
}

void encode_fields(const Header& h, ClusterWriter& cluster) {
  const std::uint64_t length =
      h.version == 2 ? v2_header_length : v3_header_length + h.unknown_fields.size();
  BigEndianWriter& out = cluster.room_for(length);
  out.u32(magic);
  out.u32(h.version);
  out.zeroes(12);  // backing file name: known when the extensions are written
  out.u32(h.cluster_bits);
  out.u64(h.virtual_size);
  out.u32(h.crypt_method);
  out.u32(h.l1_entries);
  out.u64(h.l1_offset.bytes());
  out.u64(h.refcount_table_offset.bytes());
  out.u32(h.refcount_table_clusters);
  out.u32(h.snapshot_count);
  out.u64(h.snapshots_offset.bytes());
  if (h.version == 2) {
    assert(h.incompatible_features == 0 && h.compatible_features == 0 &&
           h.autoclear_features == 0 && h.refcount_order == 4);
    return;
  }
  out.u64(h.incompatible_features);
  out.u64(h.compatible_features);
  out.u64(h.autoclear_features);
  out.u32(h.refcount_order);
  out.u32(static_cast<std::uint32_t>(length));
  out.u8(h.compression == Codec::zstd ? 1 : 0);
  out.zeroes(7);
  out.bytes(h.unknown_fields);
}

void encode_extensions(const Header& h, ClusterWriter& cluster) {
  if (!h.backing_format.empty()) {
    cluster.extension(extension_type::backing_format, as_bytes(h.backing_format));
  }
  if (h.has_data_file() && !h.data_file_name.empty()) {
    cluster.extension(extension_type::data_file, as_bytes(h.data_file_name));
  }
  if (h.crypto_header) {
    std::array<std::byte, 16> data{};
    BigEndianWriter out(data);
    out.u64(h.crypto_header->start.bytes());
    out.u64(h.crypto_header->length);
    cluster.extension(extension_type::crypto_header, data);
  }
  std::uint64_t after = 8 + h.backing_name.size() + (h.bitmaps ? 32 : 0);
  for (const Header::UnknownExtension& unknown : h.unknown_extensions) {
    after += 8 + align_up(unknown.data.size(), 8);
  }
  const std::uint64_t room = cluster.remaining() > after ? cluster.remaining() - after : 0;
  const std::vector<std::byte> names = feature_name_table(h, room);
  if (!names.empty()) cluster.extension(extension_type::feature_names, names);
  if (h.bitmaps) {
    std::array<std::byte, 24> data{};
    BigEndianWriter out(data);
    out.u32(h.bitmaps->count);
    out.u32(0);
    out.u64(h.bitmaps->directory.length);
    out.u64(h.bitmaps->directory.start.bytes());
    cluster.extension(extension_type::bitmaps, data);
  }
  for (const Header::UnknownExtension& unknown : h.unknown_extensions) {
    cluster.extension(unknown.type, unknown.data);
  }
  cluster.extension(extension_type::end, {});
}

}  // namespace

std::vector<std::byte> Header::encode() const {
  if (backing_name.size() > max_backing_name) {
    throw Error(EINVAL, fmt::format("Backing file name of {} bytes is longer than {}",
                                    backing_name.size(), max_backing_name));
  }
  if (backing_format.size() > max_backing_format) {
    throw Error(EINVAL, fmt::format("Backing format name of {} bytes is longer than {}",
                                    backing_format.size(), max_backing_format));
  }
  ClusterWriter cluster(cluster_size());
  encode_fields(*this, cluster);
  encode_extensions(*this, cluster);
  if (!backing_name.empty()) {
    const std::uint64_t at = cluster.position();
    cluster.room_for(backing_name.size()).bytes(as_bytes(backing_name));
    store_be(&cluster.bytes()[8], at);
    store_be(&cluster.bytes()[16], static_cast<std::uint32_t>(backing_name.size()));
  }
  return cluster.take();
}

}  // namespace vise::qcow2
