#include "format/qcow2/bitmap_directory.h"

#include <fmt/format.h>

#include <cerrno>
#include <set>
#include <utility>

#include "format/qcow2/metadata_io.h"
#include "vise/buffer.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t fixed_size = 24;
constexpr std::uint32_t flag_in_use = 1;
constexpr std::uint32_t flag_auto = 2;
constexpr std::uint8_t dirty_tracking = 1;
constexpr unsigned min_granularity_bits = 9;
constexpr unsigned max_granularity_bits = 31;
constexpr std::uint32_t max_table_entries = 0x8000000;
constexpr std::uint16_t max_name = 1023;
constexpr std::uint64_t entry_offset = 0x00fffffffffffe00;

[[noreturn]] void fail(std::size_t index, const std::string& text) {
  throw Error(EINVAL, fmt::format("Bitmap {}: {}", index, text));
}

struct RawEntry {
  std::uint64_t table_offset;
  std::uint32_t table_entries;
  std::uint32_t flags;
  std::uint8_t type;
  std::uint8_t granularity_bits;
  std::uint16_t name_size;
  std::uint32_t extra_size;
};

RawEntry read_fields(BigEndianReader& in) {
  RawEntry raw;
  raw.table_offset = in.u64();
  raw.table_entries = in.u32();
  raw.flags = in.u32();
  raw.type = in.u8();
  raw.granularity_bits = in.u8();
  raw.name_size = in.u16();
  raw.extra_size = in.u32();
  return raw;
}

void check(const RawEntry& raw, const Header& h, std::size_t index) {
  if (raw.type != dirty_tracking) fail(index, fmt::format("unknown type {}", raw.type));
  if ((raw.flags & ~(flag_in_use | flag_auto)) != 0) {
    fail(index, fmt::format("unknown flags {:#x}", raw.flags));
  }
  if (raw.extra_size != 0) fail(index, fmt::format("{} bytes of extra data", raw.extra_size));
  if (raw.granularity_bits < min_granularity_bits || raw.granularity_bits > max_granularity_bits) {
    fail(index, fmt::format("granularity 2^{} is outside 2^{} to 2^{}", raw.granularity_bits,
                            min_granularity_bits, max_granularity_bits));
  }
  if (raw.name_size == 0 || raw.name_size > max_name) {
    fail(index, fmt::format("name of {} bytes, not 1 to {}", raw.name_size, max_name));
  }
  if (raw.table_offset == 0 || !HostOffset(raw.table_offset).is_aligned(h.cluster_size()) ||
      raw.table_offset > INT64_MAX - std::uint64_t{max_table_entries} * 8) {
    fail(index, fmt::format("table offset {:#x} is invalid", raw.table_offset));
  }
  if (raw.table_entries == 0 || raw.table_entries > max_table_entries ||
      raw.table_entries > max_bitmap_data >> h.cluster_bits) {
    fail(index, fmt::format("table of {} entries", raw.table_entries));
  }
  // A bitmap in use may be of an older size of the disk; its data is not looked at anyway.
  const std::uint64_t bits = divide_up(h.virtual_size, std::uint64_t{1} << raw.granularity_bits);
  const std::uint64_t needed = divide_up(divide_up(bits, 8), h.cluster_size());
  if ((raw.flags & flag_in_use) == 0 && raw.table_entries != needed) {
    fail(index, fmt::format("table of {} entries, not the {} that the disk needs",
                            raw.table_entries, needed));
  }
}

}  // namespace

Value BitmapEntry::info() const {
  Value::List flags;
  if (in_use) flags.push_back("in-use");
  if (automatic) flags.push_back("auto");
  Value::Dict info;
  info.set("name", name);
  info.set("granularity", granularity());
  info.set("flags", std::move(flags));
  return info;
}

std::vector<BitmapEntry> decode_bitmap_directory(std::span<const std::byte> bytes,
                                                 const Header& header) {
  std::vector<BitmapEntry> entries;
  std::set<std::string> names;
  BigEndianReader in(bytes);
  while (in.remaining() > 0) {
    const std::size_t index = entries.size();
    if (index >= header.bitmaps->count) fail(index, "more entries than the header says");
    if (in.remaining() < fixed_size) fail(index, "the directory ends inside the entry");
    const RawEntry raw = read_fields(in);
    check(raw, header, index);
    const std::uint64_t padded = vise::align_up(raw.name_size, 8);
    if (in.remaining() < padded) fail(index, "the directory ends inside the entry");
    const auto name = in.take(raw.name_size);
    in.skip(padded - raw.name_size);

    BitmapEntry entry;
    entry.table = {HostOffset(raw.table_offset), std::uint64_t{raw.table_entries} * 8};
    entry.in_use = (raw.flags & flag_in_use) != 0;
    entry.automatic = (raw.flags & flag_auto) != 0;
    entry.granularity_bits = raw.granularity_bits;
    entry.name.assign(reinterpret_cast<const char*>(name.data()), name.size());
    if (!names.insert(entry.name).second) fail(index, "another bitmap has the same name");
    entries.push_back(std::move(entry));
  }
  if (entries.size() != header.bitmaps->count) {
    fail(entries.size(), fmt::format("the header says there are {}", header.bitmaps->count));
  }
  return entries;
}

std::uint64_t bitmap_entry_size(std::size_t name_length) {
  return vise::align_up(fixed_size + name_length, 8);
}

std::vector<std::byte> encode_bitmap_directory(std::span<const BitmapEntry> entries) {
  std::uint64_t length = 0;
  for (const BitmapEntry& entry : entries) length += bitmap_entry_size(entry.name.size());
  std::vector<std::byte> bytes(length);
  BigEndianWriter out(bytes);
  for (const BitmapEntry& entry : entries) {
    const std::size_t start = out.position();
    out.u64(entry.table.start.bytes());
    out.u32(static_cast<std::uint32_t>(entry.table.length / 8));
    out.u32((entry.in_use ? flag_in_use : 0) | (entry.automatic ? flag_auto : 0));
    out.u8(dirty_tracking);
    out.u8(static_cast<std::uint8_t>(entry.granularity_bits));
    out.u16(static_cast<std::uint16_t>(entry.name.size()));
    out.u32(0);  // extra data
    out.bytes(std::as_bytes(std::span(entry.name)));
    out.zeroes(start + bitmap_entry_size(entry.name.size()) - out.position());
  }
  return bytes;
}

Task<std::vector<BitmapEntry>> read_bitmap_directory(Child& file, const Header& header) {
  if (!header.bitmaps) co_return std::vector<BitmapEntry>();
  const HostRange directory = header.bitmaps->directory;
  if (!directory.ends_by(file.size())) {
    throw Error(EINVAL, fmt::format("Bitmap directory at {:#x} ends beyond the end of the file",
                                    directory.start.bytes()));
  }
  Buffer buffer(directory.length);
  co_await file.read(directory.start, IoVec(buffer.span()));
  co_return decode_bitmap_directory(buffer.span(), header);
}

HostRange decode_bitmap_table_entry(std::uint64_t entry, const Header& header) {
  const HostOffset offset(entry & entry_offset);
  const std::uint64_t allowed = offset.bytes() == 0 ? 1 : entry_offset;
  if ((entry & ~allowed) != 0 || !offset.is_aligned(header.cluster_size())) {
    throw Error(EINVAL, fmt::format("Bitmap table entry {:#018x} is invalid", entry));
  }
  return {offset, offset.bytes() == 0 ? 0 : header.cluster_size()};
}

}  // namespace vise::qcow2
