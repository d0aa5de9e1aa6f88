#include "format/qcow2/snapshot_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

#include "format/qcow2/metadata_io.h"
#include "vise/buffer.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t fixed_size = 40;
constexpr std::uint32_t known_extra = 24;
constexpr std::uint64_t first_read = 64 << 10;

std::string as_string(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Walks the entries. Every length is bounded by what is left before it is used.
class EntryDecoder {
 public:
  EntryDecoder(std::span<const std::byte> bytes, const Header& header, SnapshotTable& table)
      : bytes_(bytes), header_(header), table_(table) {}

  // False if the entry does not lie inside the bytes. `length` of the table moves on.
  bool next(SnapshotTable::Mode mode) {
    const std::uint64_t start = vise::align_up(table_.length, 8);
    if (start > bytes_.size() || bytes_.size() - start < fixed_size) return false;
    BigEndianReader in(bytes_.subspan(start));
    Snapshot s;
    s.l1_offset = HostOffset(in.u64());
    s.l1_entries = in.u32();
    const std::uint16_t id_size = in.u16();
    const std::uint16_t name_size = in.u16();
    s.seconds = in.u32();
    s.nanoseconds = in.u32();
    s.vm_clock = in.u64();
    s.vm_state_size = in.u32();
    const std::uint32_t extra_size = in.u32();
    if (in.remaining() < std::uint64_t{extra_size} + id_size + name_size) return false;
    if (extra_size > max_snapshot_extra && mode == SnapshotTable::Mode::strict) {
      throw Error(EFBIG, fmt::format("Snapshot {} has {} bytes of extra data, more than {}",
                                     table_.snapshots.size(), extra_size, max_snapshot_extra));
    }
    decode_extra(s, in.take(extra_size));
    s.id = as_string(in.take(id_size));
    s.name = as_string(in.take(name_size));
    s.position = start;
    table_.length = start + in.position();
    table_.snapshots.push_back(std::move(s));
    return true;
  }

 private:
  void decode_extra(Snapshot& s, std::span<const std::byte> extra) {
    if (header_.version >= 3 && extra.size() < min_snapshot_extra_v3) ++table_.short_extra;
    if (extra.size() > max_snapshot_extra) {
      ++table_.excess_extra;
      extra = extra.first(max_snapshot_extra);
    }
    s.virtual_size = header_.virtual_size;
    if (extra.size() >= 8) s.vm_state_size = load_be<std::uint64_t>(&extra[0]);
    if (extra.size() >= 16) s.virtual_size = load_be<std::uint64_t>(&extra[8]);
    if (extra.size() >= known_extra) {
      s.icount = load_be<std::uint64_t>(&extra[16]);
      s.unknown_extra.assign(extra.begin() + known_extra, extra.end());
    }
  }

  std::span<const std::byte> bytes_;
  const Header& header_;
  SnapshotTable& table_;
};

}  // namespace

void Snapshot::check_l1(const Header& header) const {
  if (l1_entries > max_l1_bytes / 8) {
    throw Error(EFBIG, fmt::format("L1 table of the snapshot has {} entries, more than {}",
                                   l1_entries, max_l1_bytes / 8));
  }
  if (!l1_offset.is_aligned(header.cluster_size()) || !l1_table().ends_by(INT64_MAX)) {
    throw Error(EINVAL, fmt::format("L1 table of the snapshot at {:#x} is not at a cluster",
                                    l1_offset.bytes()));
  }
}

Task<std::vector<std::uint64_t>> Snapshot::read_l1(Child& file, const Header& header) const {
  check_l1(header);
  Buffer bytes(l1_table().length);
  co_await read_zero_extended(file, l1_offset, bytes.span());
  std::vector<std::uint64_t> entries(l1_entries);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    entries[i] = load_be<std::uint64_t>(bytes.data() + i * 8);
  }
  co_return entries;
}

Value Snapshot::info() const {
  Value::Dict info;
  info.set("id", id);
  info.set("name", name);
  info.set("vm-state-size", vm_state_size);
  info.set("date-sec", seconds);
  info.set("date-nsec", nanoseconds);
  info.set("vm-clock-sec", vm_clock / 1000000000);
  info.set("vm-clock-nsec", vm_clock % 1000000000);
  if (icount != no_icount) info.set("icount", icount);
  return info;
}

std::optional<SnapshotTable> SnapshotTable::decode(std::span<const std::byte> bytes, Extent extent,
                                                   const Header& header, Mode mode) {
  const std::uint32_t count = std::min(header.snapshot_count, max_snapshots);
  const bool limited = bytes.size() >= max_snapshot_table;
  if (limited) bytes = bytes.first(max_snapshot_table);
  SnapshotTable table;
  EntryDecoder decoder(bytes, header, table);
  while (table.snapshots.size() < count) {
    if (decoder.next(mode)) continue;
    if (!limited && extent == Extent::partial) return std::nullopt;
    if (mode == Mode::tolerant) break;
    if (limited) {
      throw Error(EFBIG, fmt::format("Snapshot table is longer than {} bytes", max_snapshot_table));
    }
    throw Error(EINVAL, fmt::format("Snapshot table ends beyond the end of the file, in entry {} "
                                    "of {}",
                                    table.snapshots.size(), count));
  }
  table.surplus = header.snapshot_count - table.snapshots.size();
  return table;
}

Task<SnapshotTable> SnapshotTable::read(Child& file, const Header& header, Mode mode) {
  if (header.snapshot_count == 0) co_return SnapshotTable();
  const std::uint64_t file_length = file.size();
  const std::uint64_t start = header.snapshots_offset.bytes();
  const std::uint64_t present = start < file_length ? file_length - start : 0;
  const std::uint64_t most = std::min(present, max_snapshot_table);
  for (std::uint64_t length = first_read;; length *= 8) {
    length = std::min(length, most);
    Buffer buffer(length);
    if (length > 0) co_await file.read(header.snapshots_offset, IoVec(buffer.span()));
    const Extent extent = length == present ? Extent::complete : Extent::partial;
    std::optional<SnapshotTable> table = decode(buffer.span(), extent, header, mode);
    if (table) co_return std::move(*table);
  }
}

std::vector<std::byte> SnapshotTable::encode() const {
  std::uint64_t size = 0;
  for (const Snapshot& s : snapshots) {
    size = vise::align_up(size, 8) + fixed_size + known_extra + s.unknown_extra.size() +
           s.id.size() + s.name.size();
  }
  std::vector<std::byte> bytes(size);
  BigEndianWriter out(bytes);
  for (const Snapshot& s : snapshots) {
    out.zeroes(vise::align_up(out.position(), 8) - out.position());
    out.u64(s.l1_offset.bytes());
    out.u32(s.l1_entries);
    out.u16(static_cast<std::uint16_t>(s.id.size()));
    out.u16(static_cast<std::uint16_t>(s.name.size()));
    out.u32(s.seconds);
    out.u32(s.nanoseconds);
    out.u64(s.vm_clock);
    out.u32(s.vm_state_size <= UINT32_MAX ? static_cast<std::uint32_t>(s.vm_state_size) : 0);
    out.u32(static_cast<std::uint32_t>(known_extra + s.unknown_extra.size()));
    out.u64(s.vm_state_size);
    out.u64(s.virtual_size);
    out.u64(s.icount);
    out.bytes(s.unknown_extra);
    out.bytes(as_bytes(s.id));
    out.bytes(as_bytes(s.name));
  }
  return bytes;
}

}  // namespace vise::qcow2
