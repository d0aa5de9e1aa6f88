// Decoding and checking of the first cluster; header_encode.cc writes it. Rules: docs/qcow2.md,
// "Header" and the list of hostile input. Each rule has a case in tests/unit/qcow2_header_test.cc.
#include "format/qcow2/header.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>

#include "format/qcow2/header_layout.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t sector = 512;
constexpr std::uint64_t host_limit = INT64_MAX;  // no table may end beyond
constexpr std::uint64_t max_l1_coverage_entries = INT32_MAX;
constexpr std::uint64_t known_incompatible =
    incompatible::dirty | incompatible::corrupt | incompatible::data_file |
    incompatible::compression_type | incompatible::extended_l2;

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string_view until_nul(std::string_view text) { return text.substr(0, text.find('\0')); }

// Names from an image go to terminals: nothing that a terminal would interpret.
std::string printable(std::string_view text) {
  std::string result(text);
  std::ranges::replace_if(result, [](char c) { return c < 0x20 || c > 0x7e; }, '?');
  return result;
}

// What decode() needs besides the fields of Header.
struct RawFields {
  std::uint64_t backing_offset = 0;
  std::uint32_t backing_size = 0;
  std::uint32_t header_length = v2_header_length;
  std::uint8_t compression_type = 0;
};

RawFields read_fields(BigEndianReader in, Header& h) {
  RawFields raw;
  if (in.u32() != magic) throw Error(EINVAL, "Image is not in qcow2 format");
  h.version = in.u32();
  if (h.version != 2 && h.version != 3) {
    throw Error(ENOTSUP,
                fmt::format("qcow2 version {} is not supported, only 2 and 3 are", h.version));
  }
  raw.backing_offset = in.u64();
  raw.backing_size = in.u32();
  h.cluster_bits = in.u32();
  h.virtual_size = in.u64();
  h.crypt_method = in.u32();
  h.l1_entries = in.u32();
  h.l1_offset = HostOffset(in.u64());
  h.refcount_table_offset = HostOffset(in.u64());
  h.refcount_table_clusters = in.u32();
  h.snapshot_count = in.u32();
  h.snapshots_offset = HostOffset(in.u64());
  if (h.version == 2) return raw;

  h.incompatible_features = in.u64();
  h.compatible_features = in.u64();
  h.autoclear_features = in.u64();
  h.refcount_order = in.u32();
  raw.header_length = in.u32();
  if (raw.header_length > v3_minimal_length) raw.compression_type = in.u8();
  return raw;
}

// Before anything shifts by cluster_bits or follows header_length.
void check_geometry(const Header& h, const RawFields& raw) {
  if (h.cluster_bits < min_cluster_bits || h.cluster_bits > max_cluster_bits) {
    throw Error(EINVAL, fmt::format("Cluster size 2^{} is outside 2^{} to 2^{}", h.cluster_bits,
                                    min_cluster_bits, max_cluster_bits));
  }
  if (h.version == 3 && (raw.header_length < v3_minimal_length ||
                         raw.header_length > h.cluster_size() || raw.header_length % 8 != 0)) {
    throw Error(
        EINVAL,
        fmt::format("Header length {} is not a multiple of 8 from {} to the cluster size {}",
                    raw.header_length, v3_minimal_length, h.cluster_size()));
  }
  if (raw.backing_offset > h.cluster_size()) {
    throw Error(EINVAL, fmt::format("Backing file name offset {} is beyond the first cluster of {}",
                                    raw.backing_offset, h.cluster_size()));
  }
  const std::uint64_t room =
      std::min<std::uint64_t>(max_backing_name, h.cluster_size() - raw.backing_offset);
  if (raw.backing_offset != 0 && raw.backing_size > room) {
    throw Error(EINVAL, fmt::format("Backing file name of {} bytes is longer than {} bytes",
                                    raw.backing_size, room));
  }
  if (h.refcount_order > 6) {
    throw Error(EINVAL,
                fmt::format("Reference count width 2^{} is more than 64 bits", h.refcount_order));
  }
}

void check_compression(Header& h, const RawFields& raw) {
  const bool flagged = (h.incompatible_features & incompatible::compression_type) != 0;
  if (flagged != (raw.compression_type != 0)) {
    throw Error(EINVAL, fmt::format("Compression type {} and incompatible feature bit 3 ({}) "
                                    "contradict each other",
                                    raw.compression_type, flagged ? "set" : "clear"));
  }
  if (raw.compression_type > 1) {
    throw Error(ENOTSUP, fmt::format("Compression type {} is not supported, only 0 (zlib) and 1 "
                                     "(zstd) are",
                                     raw.compression_type));
  }
  h.compression = raw.compression_type == 1 ? Codec::zstd : Codec::deflate;
}

// The extension area, entry by entry.
class ExtensionWalk {
 public:
  ExtensionWalk(std::span<const std::byte> cluster, const Header& h, const RawFields& raw)
      : cluster_(cluster),
        position_(raw.header_length),
        end_(raw.backing_offset != 0 ? raw.backing_offset : h.cluster_size()) {}

  // False at the end of the area or at its terminator.
  bool next() {
    if (position_ >= end_) return false;
    if (end_ - position_ < 8) throw Error(EINVAL, "Header extension area ends inside an extension");
    type_ = load_be<std::uint32_t>(&cluster_[position_]);
    const auto length = load_be<std::uint32_t>(&cluster_[position_ + 4]);
    if (length > end_ - position_ - 8) {
      throw Error(
          EINVAL,
          fmt::format("Header extension {:#010x} at byte {} has {} bytes of data, more than "
                      "the {} that are left",
                      type_, position_, length, end_ - position_ - 8));
    }
    if (type_ == extension_type::end) return false;
    data_ = cluster_.subspan(position_ + 8, length);
    position_ += 8 + align_up(length, 8);
    return true;
  }

  std::uint32_t type() const { return type_; }
  std::span<const std::byte> data() const { return data_; }

 private:
  std::span<const std::byte> cluster_;
  std::uint64_t position_;
  std::uint64_t end_;
  std::uint32_t type_ = 0;
  std::span<const std::byte> data_;
};

std::string name_in_table(std::span<const std::byte> table, unsigned bit) {
  for (; table.size() >= feature_entry_size; table = table.subspan(feature_entry_size)) {
    if (table[0] != std::byte{0} || std::to_integer<unsigned>(table[1]) != bit) continue;
    const auto name = until_nul(as_text(table.subspan(2, feature_name_length)));
    if (!name.empty()) return printable(name);
  }
  return {};
}

void check_incompatible_features(std::span<const std::byte> cluster, const Header& h,
                                 const RawFields& raw, Header::Purpose purpose) {
  std::uint64_t unknown = h.incompatible_features & ~known_incompatible;
  if (purpose == Header::Purpose::make) unknown &= ~incompatible::incomplete;
  if (unknown == 0) return;
  if ((unknown & incompatible::incomplete) != 0) {
    throw Error(ENOTSUP, "Image is incomplete: the conversion that was making it was interrupted");
  }
  // An image with features we do not know may have extensions we cannot parse: no reason to
  // complain about those instead of the features.
  std::span<const std::byte> table;
  try {
    ExtensionWalk walk(cluster, h, raw);
    while (walk.next()) {
      if (walk.type() == extension_type::feature_names) table = walk.data();
    }
  } catch (const Error&) {
  }
  std::string names;
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t mask = std::uint64_t{1} << bit;
    if ((unknown & mask) == 0) continue;
    const std::string name = name_in_table(table, bit);
    if (name.empty()) continue;
    names += (names.empty() ? "" : ", ") + name;
    unknown &= ~mask;
  }
  if (unknown != 0) {
    names += fmt::format("{}unknown bits {:#x}", names.empty() ? "" : ", ", unknown);
  }
  throw Error(ENOTSUP, fmt::format("Image uses unsupported qcow2 features: {}", names));
}

void check_aligned(const Header& h, HostOffset offset, const char* what) {
  if (offset.is_aligned(h.cluster_size())) return;
  throw Error(EINVAL, fmt::format("{} offset {:#x} is not a multiple of the cluster size {}", what,
                                  offset.bytes(), h.cluster_size()));
}

void check_placement(const Header& h, HostRange range, const char* what) {
  check_aligned(h, range.start, what);
  if (!range.ends_by(host_limit)) {
    throw Error(EINVAL, fmt::format("{} at {:#x} ends beyond 2^63", what, range.start.bytes()));
  }
}

void check_l1(const Header& h) {
  if (h.l1_entries > max_l1_bytes / 8) {
    throw Error(EFBIG, fmt::format("L1 table of {} entries is larger than {}", h.l1_entries,
                                   max_l1_bytes / 8));
  }
  check_placement(h, h.l1_table(), "L1 table");
  const std::uint64_t needed = divide_up(h.virtual_size, h.l2_coverage());
  if (needed > max_l1_coverage_entries || h.virtual_size > host_limit - h.l2_coverage()) {
    throw Error(EFBIG, fmt::format("Virtual size {} is too large for clusters of {} bytes",
                                   h.virtual_size, h.cluster_size()));
  }
  if (needed > h.l1_entries) {
    throw Error(EINVAL, fmt::format("L1 table is too small: {} entries, {} needed for {} bytes",
                                    h.l1_entries, needed, h.virtual_size));
  }
}

void check_refcount_table(const Header& h, Header::Purpose purpose) {
  if (h.refcount_table_clusters > max_refcount_table_bytes >> h.cluster_bits) {
    throw Error(EFBIG,
                fmt::format("Refcount table of {} clusters is larger than {}",
                            h.refcount_table_clusters, max_refcount_table_bytes >> h.cluster_bits));
  }
  if (h.refcount_table_clusters == 0 && purpose != Header::Purpose::check) {
    throw Error(EINVAL, "Image has no refcount table")
        .with_hint("A repair (check -r all) may rebuild it");
  }
  check_placement(h, h.refcount_table(), "Refcount table");
}

void check_snapshots(const Header& h, Header::Purpose purpose) {
  if (h.snapshot_count > max_snapshots && purpose != Header::Purpose::check) {
    throw Error(EFBIG, fmt::format("Image has {} snapshots, more than {}", h.snapshot_count,
                                   max_snapshots));
  }
  check_placement(h, {h.snapshots_offset, 0}, "Snapshot table");
}

BitmapsExtension decode_bitmaps(const Header& h, std::span<const std::byte> data) {
  BigEndianReader in(data);
  BitmapsExtension bitmaps{};
  bitmaps.count = in.u32();
  const std::uint32_t reserved = in.u32();
  bitmaps.directory.length = in.u64();
  bitmaps.directory.start = HostOffset(in.u64());
  if (reserved != 0) {
    throw Error(EINVAL, fmt::format("Reserved field of the bitmaps extension is {}", reserved));
  }
  if (bitmaps.count == 0 || bitmaps.count > max_bitmaps) {
    throw Error(EINVAL, fmt::format("Bitmaps extension names {} bitmaps, not 1 to {}",
                                    bitmaps.count, max_bitmaps));
  }
  if (bitmaps.directory.length == 0 || bitmaps.directory.length > max_bitmap_directory) {
    throw Error(EINVAL, fmt::format("Bitmap directory of {} bytes is not 1 to {}",
                                    bitmaps.directory.length, max_bitmap_directory));
  }
  check_placement(h, bitmaps.directory, "Bitmap directory");
  return bitmaps;
}

HostRange decode_crypto_header(const Header& h, std::span<const std::byte> data) {
  if (h.crypt_method != 2) {
    throw Error(EINVAL, fmt::format("Crypto header extension in an image with encryption method {}",
                                    h.crypt_method));
  }
  BigEndianReader in(data);
  HostRange range;
  range.start = HostOffset(in.u64());
  range.length = in.u64();
  if (range.length > max_crypto_header) {
    throw Error(EINVAL, fmt::format("Crypto header of {} bytes is longer than {}", range.length,
                                    max_crypto_header));
  }
  check_placement(h, range, "Crypto header");
  return range;
}

void check_extension_length(std::span<const std::byte> data, std::size_t length, const char* what) {
  if (data.size() == length) return;
  throw Error(EINVAL, fmt::format("{} extension has {} bytes, not {}", what, data.size(), length));
}

void decode_extension(Header& h, std::uint32_t type, std::span<const std::byte> data) {
  switch (type) {
    case extension_type::backing_format:
      if (data.size() > max_backing_format) {
        throw Error(EINVAL, fmt::format("Backing format name of {} bytes is longer than {}",
                                        data.size(), max_backing_format));
      }
      h.backing_format = until_nul(as_text(data));
      break;
    case extension_type::feature_names:
      break;  // only for messages; written anew
    case extension_type::bitmaps:
      check_extension_length(data, 24, "Bitmaps");
      // Without the autoclear bit somebody has written without keeping the bitmaps up to date:
      // they are lost, and so is the extension at the next rewrite (qcow2.md 2.3).
      if ((h.autoclear_features & autoclear::bitmaps) != 0) h.bitmaps = decode_bitmaps(h, data);
      break;
    case extension_type::crypto_header:
      check_extension_length(data, 16, "Crypto header");
      h.crypto_header = decode_crypto_header(h, data);
      break;
    case extension_type::data_file:
      h.data_file_name = until_nul(as_text(data));
      break;
    default:
      h.unknown_extensions.push_back({type, {data.begin(), data.end()}});
  }
}

void check_features(const Header& h) {
  if (h.extended_l2() && h.cluster_bits < min_extended_l2_cluster_bits) {
    throw Error(EINVAL,
                fmt::format("Extended L2 entries need clusters of at least {} bytes, not {}",
                            1u << min_extended_l2_cluster_bits, h.cluster_size()));
  }
  if (h.crypt_method > 2) {
    throw Error(EINVAL, fmt::format("Encryption method {} is not 0 to 2", h.crypt_method));
  }
}

void check_combinations(const Header& h) {
  if (h.crypt_method == 2 && !h.crypto_header) {
    throw Error(EINVAL, "LUKS-encrypted image has no crypto header");
  }
  if ((h.autoclear_features & autoclear::raw_data_file) == 0) return;
  if (!h.has_data_file()) {
    throw Error(EINVAL, "Image claims a raw external data file but uses no external data file");
  }
  if (!h.backing_name.empty()) {
    throw Error(EINVAL, "Image has both a raw external data file and a backing file");
  }
}

std::string decode_backing_name(std::span<const std::byte> cluster, const RawFields& raw) {
  if (raw.backing_offset == 0) return {};
  const std::string name(as_text(cluster.subspan(raw.backing_offset, raw.backing_size)));
  if (name.find('\0') != std::string::npos) {
    throw Error(EINVAL, "Backing file name contains a NUL byte");
  }
  return name;
}

std::vector<std::byte> zero_extended(std::span<const std::byte> bytes, std::uint64_t length) {
  std::vector<std::byte> result(length);
  const std::size_t present = std::min<std::uint64_t>(bytes.size(), length);
  std::copy_n(bytes.begin(), present, result.begin());
  return result;
}

}  // namespace

Header Header::decode(std::span<const std::byte> image_start, Purpose purpose) {
  Header h;
  const RawFields raw =
      read_fields(BigEndianReader(zero_extended(image_start, v3_header_length)), h);
  check_geometry(h, raw);
  // Only a file that ends inside its first cluster is worth a copy.
  std::vector<std::byte> longer;
  if (image_start.size() < h.cluster_size()) longer = zero_extended(image_start, h.cluster_size());
  const std::span<const std::byte> cluster =
      longer.empty() ? image_start.first(h.cluster_size()) : longer;
  check_compression(h, raw);
  check_incompatible_features(cluster, h, raw, purpose);
  check_features(h);
  h.virtual_size = vise::align_down(h.virtual_size, sector);
  check_l1(h);
  check_refcount_table(h, purpose);
  check_snapshots(h, purpose);
  for (ExtensionWalk walk(cluster, h, raw); walk.next();) {
    decode_extension(h, walk.type(), walk.data());
  }
  h.backing_name = decode_backing_name(cluster, raw);
  check_combinations(h);
  if (raw.header_length > v3_header_length) {
    h.unknown_fields.assign(cluster.begin() + v3_header_length,
                            cluster.begin() + raw.header_length);
  }
  return h;
}

void Header::check_writable(std::uint64_t snapshot_table_bytes) const {
  if ((incompatible_features & incompatible::corrupt) != 0) {
    throw Error(EACCES, "Image is marked corrupt and can only be opened read-only")
        .with_hint("Repair it with 'check -r all' first");
  }
  struct Table {
    HostRange range;
    const char* name;
  };
  std::array<Table, 6> tables = {{
      {{HostOffset(0), cluster_size()}, "header"},
      {l1_table(), "L1 table"},
      {refcount_table(), "refcount table"},
      {{snapshots_offset, snapshot_table_bytes}, "snapshot table"},
      {bitmaps ? bitmaps->directory : HostRange{}, "bitmap directory"},
      {crypto_header.value_or(HostRange{}), "crypto header"},
  }};
  for (std::size_t i = 0; i < tables.size(); ++i) {
    for (std::size_t j = i + 1; j < tables.size(); ++j) {
      if (tables[i].range.empty() || tables[j].range.empty()) continue;
      if (!tables[i].range.overlaps(tables[j].range)) continue;
      throw Error(EINVAL,
                  fmt::format("Image cannot be written: {} at {:#x} overlaps the {}",
                              tables[j].name, tables[j].range.start.bytes(), tables[i].name));
    }
  }
}

}  // namespace vise::qcow2
