// L2 entries: decode to a Descriptor, encode back.
#include "format/qcow2/descriptor.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>

#include <fmt/format.h>

#include "vise/error.h"

namespace vise::qcow2 {

namespace {

// The lowest bit of the "additional sectors" field of a compressed entry.
unsigned sectors_shift(const Geometry& geometry) { return 70 - geometry.cluster_bits; }

Error corrupt(const char* what, std::uint64_t word) {
  return Error(EIO, fmt::format("the image is corrupt: L2 entry {:#018x} {}", word, what));
}

Descriptor decode_compressed(std::uint64_t word, const Geometry& geometry) {
  if (geometry.data_file) throw corrupt("is compressed beside a data file", word);
  const unsigned shift = sectors_shift(geometry);
  const std::uint64_t offset = word & ((std::uint64_t{1} << shift) - 1);
  const std::uint64_t extra_sectors =
      (word >> shift) & ((std::uint64_t{1} << (geometry.cluster_bits - 8)) - 1);
  if (offset >= geometry.compressed_limit) throw corrupt("points beyond the format's end", word);
  // The length is an upper bound in sectors; two clusters is what the field can say at most.
  return {.compressed = true,
          .has_host = true,
          .host = HostOffset(offset),
          .stored_length = (extra_sectors + 1) * 512 - (offset & 511)};
}

}  // namespace

Geometry::Geometry(const Header& header)
    : cluster_bits(header.cluster_bits),
      cluster_size(header.cluster_size()),
      l2_entry_size(header.l2_entry_size()),
      l2_bits(static_cast<unsigned>(std::bit_width(header.l2_entries()) - 1)),
      subclusters(header.extended_l2() ? 32 : 1),
      subcluster_size(cluster_size / subclusters),
      all_subclusters(header.extended_l2() ? 0xffffffff : 1),
      zero_flag(header.version >= 3),
      extended_l2(header.extended_l2()),
      data_file(header.has_data_file()),
      compressed_limit(std::uint64_t{1} << std::min(56u, 70 - header.cluster_bits)) {}

Descriptor Descriptor::compressed_at(HostOffset host, std::uint64_t length) {
  assert(length > 0);
  const std::uint64_t end = (host.bytes() + length - 1) / 512 * 512 + 512;
  return {.compressed = true, .has_host = true, .host = host, .stored_length = end - host.bytes()};
}

Descriptor Descriptor::decode(std::uint64_t word, std::uint64_t bitmap, const Geometry& geometry) {
  if ((word & entry_compressed) != 0) return decode_compressed(word, geometry);

  Descriptor d;
  d.copied = (word & entry_copied) != 0;
  d.host = HostOffset(word & entry_offset_mask);
  // Guest cluster 0 lies at offset 0 of a data file: there only the flag says "allocated".
  d.has_host = d.host.bytes() != 0 || (geometry.data_file && d.copied);
  if (!d.host.is_aligned(geometry.cluster_size)) throw corrupt("is not cluster-aligned", word);

  if (geometry.extended_l2) {
    d.allocated = static_cast<std::uint32_t>(bitmap);
    d.zero = static_cast<std::uint32_t>(bitmap >> 32);
    if ((d.allocated & d.zero) != 0) throw corrupt("has subclusters both allocated and zero", word);
    if (d.allocated != 0 && !d.has_host) throw corrupt("has allocated subclusters nowhere", word);
  } else if ((word & entry_zero) != 0) {
    if (!geometry.zero_flag) throw corrupt("has the zero flag in a version 2 image", word);
    d.zero = 1;
    d.has_host = d.host.bytes() != 0;  // COPIED says nothing beside the flag
  } else if (d.has_host) {
    d.allocated = 1;
  }
  if (!d.has_host) d.copied = false;
  return d;
}

Descriptor::Words Descriptor::encode(const Geometry& geometry) const {
  if (compressed) {
    const std::uint64_t first_sector = host.bytes() / 512;
    const std::uint64_t last_sector = (host.bytes() + stored_length - 1) / 512;
    assert(host.bytes() < geometry.compressed_limit);
    assert(last_sector - first_sector < std::uint64_t{1} << (geometry.cluster_bits - 8));
    return {
        entry_compressed | (last_sector - first_sector) << sectors_shift(geometry) | host.bytes(),
        0};
  }
  std::uint64_t word = 0;
  if (has_host) word = host.bytes() | (copied ? entry_copied : 0);
  if (geometry.extended_l2) return {word, std::uint64_t{zero} << 32 | allocated};
  assert(zero == 0 || geometry.zero_flag);
  return {word | (zero != 0 ? entry_zero : 0), 0};
}

}  // namespace vise::qcow2
