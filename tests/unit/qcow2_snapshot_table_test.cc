// Snapshot table and bitmap directory: the reference's real entries, the limits, and what info
// makes of them.
#include "format/qcow2/snapshot_table.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <random>
#include <string>

#include "format/qcow2/bitmap_directory.h"
#include "format/qcow2/image_info.h"
#include "qcow2_test_support.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

using Bytes = std::vector<std::byte>;
using Mode = SnapshotTable::Mode;
using Extent = SnapshotTable::Extent;

Bytes from_hex(std::string_view hex) {
  Bytes bytes;
  std::string digits;
  for (const char c : hex) {
    if (c == ' ') continue;
    digits += c;
    if (digits.size() < 2) continue;
    bytes.push_back(static_cast<std::byte>(std::stoul(digits, nullptr, 16)));
    digits.clear();
  }
  return bytes;
}

// As dumped from an image of 64 KiB clusters and 1 MiB disk.
const Bytes real_entry = from_hex(
    "0000000000070000 00000001 0001 0005 6b000a7e 306f42f0 0000000000000000 00000000 00000018"
    "0000000000000000 0000000000100000 0000000000000000 31 6669727374");

Header header_with(std::uint32_t snapshots) {
  Header h = CreateOptions().header(2 << 20);
  h.snapshot_count = snapshots;
  h.snapshots_offset = HostOffset(0x80000);
  return h;
}

SnapshotTable decode(const Bytes& bytes, std::uint32_t count, Mode mode = Mode::strict) {
  return SnapshotTable::decode(bytes, Extent::complete, header_with(count), mode).value();
}

Bytes two_entries() {
  Bytes bytes = real_entry;
  bytes.resize(align_up(bytes.size(), 8));
  bytes.insert(bytes.end(), real_entry.begin(), real_entry.end());
  return bytes;
}

TEST(SnapshotTable, ReadsARealEntry) {
  const SnapshotTable table = decode(real_entry, 1);
  ASSERT_EQ(table.snapshots.size(), 1u);
  const Snapshot& s = table.snapshots[0];
  EXPECT_EQ(s.l1_table(), (HostRange{HostOffset(0x70000), 8}));
  EXPECT_EQ(s.id, "1");
  EXPECT_EQ(s.name, "first");
  EXPECT_EQ(s.seconds, 0x6b000a7eu);
  EXPECT_EQ(s.nanoseconds, 0x306f42f0u);
  EXPECT_EQ(s.virtual_size, 1u << 20);
  EXPECT_EQ(s.icount, 0u);
  EXPECT_EQ(table.length, real_entry.size());
  EXPECT_EQ(table.encode(), real_entry);
  s.check_l1(header_with(1));
}

TEST(SnapshotTable, EntriesAreAlignedAndTheLastIsNotPadded) {
  const SnapshotTable table = decode(two_entries(), 2);
  EXPECT_EQ(table.snapshots.size(), 2u);
  EXPECT_EQ(table.length, two_entries().size());
  EXPECT_EQ(table.encode(), two_entries());
}

TEST(SnapshotTable, UnknownExtraDataSurvives) {
  Bytes bytes = real_entry;
  store_be(&bytes[36], std::uint32_t{24 + 5});
  const Bytes extra = from_hex("0102030405");
  bytes.insert(bytes.begin() + 64, extra.begin(), extra.end());
  const SnapshotTable table = decode(bytes, 1);
  EXPECT_EQ(table.snapshots[0].name, "first");
  EXPECT_EQ(table.encode(), bytes);
}

TEST(SnapshotTable, LargeMachineStateIsInTheExtraDataOnly) {
  SnapshotTable table = decode(real_entry, 1);
  table.snapshots[0].vm_state_size = std::uint64_t{5} << 32;
  const Bytes bytes = table.encode();
  EXPECT_EQ(load_be<std::uint32_t>(&bytes[32]), 0u);
  EXPECT_EQ(decode(bytes, 1).snapshots[0].vm_state_size, std::uint64_t{5} << 32);
}

TEST(SnapshotTable, ShortExtraDataTakesTheSizeOfTheDisk) {
  Bytes bytes(real_entry.begin(), real_entry.begin() + 40);
  store_be(&bytes[36], std::uint32_t{0});
  store_be(&bytes[32], std::uint32_t{77});
  bytes.insert(bytes.end(), real_entry.end() - 6, real_entry.end());
  const SnapshotTable table = decode(bytes, 1);
  EXPECT_EQ(table.short_extra, 1u);
  EXPECT_EQ(table.snapshots[0].virtual_size, 2u << 20);
  EXPECT_EQ(table.snapshots[0].vm_state_size, 77u);
  EXPECT_EQ(table.snapshots[0].icount, no_icount);
  EXPECT_EQ(decode(table.encode(), 1).short_extra, 0u);
}

TEST(SnapshotTable, TheEndOfTheFileEndsIt) {
  for (std::size_t length = 0; length < real_entry.size(); ++length) {
    const Bytes cut(real_entry.begin(), real_entry.begin() + length);
    expect_error(EINVAL, "beyond the end of the file", [&] { decode(cut, 1); });
    EXPECT_EQ(decode(cut, 1, Mode::tolerant).surplus, 1u);
    EXPECT_FALSE(SnapshotTable::decode(cut, Extent::partial, header_with(1), Mode::strict));
  }
}

TEST(SnapshotTable, ExtraDataHasALimit) {
  Bytes bytes = real_entry;
  store_be(&bytes[36], std::uint32_t{1025});
  bytes.insert(bytes.begin() + 64, 1025 - 24, std::byte{7});
  expect_error(EFBIG, "1025 bytes of extra data", [&] { decode(bytes, 1); });
  const SnapshotTable table = decode(bytes, 1, Mode::tolerant);
  EXPECT_EQ(table.excess_extra, 1u);
  EXPECT_EQ(table.snapshots[0].name, "first");
  EXPECT_EQ(table.snapshots[0].unknown_extra.size(), 1000u);
}

TEST(SnapshotTable, LengthsThatWrapEndIt) {
  Bytes bytes = real_entry;
  store_be(&bytes[36], UINT32_MAX);
  expect_error(EINVAL, "beyond the end", [&] { decode(bytes, 1); });
  EXPECT_EQ(decode(bytes, 1, Mode::tolerant).snapshots.size(), 0u);
}

TEST(SnapshotTable, L1TablesAreCheckedAtEveryUse) {
  Snapshot s = decode(real_entry, 1).snapshots[0];
  s.l1_entries = 4194305;
  expect_error(EFBIG, "4194305", [&] { s.check_l1(header_with(1)); });
  s.l1_entries = 1;
  s.l1_offset = HostOffset(0x70200);
  expect_error(EINVAL, "0x70200", [&] { s.check_l1(header_with(1)); });
  s.l1_offset = HostOffset(0x7fffffffffff0000);
  s.l1_entries = 4194304;
  expect_error(EINVAL, "L1", [&] { s.check_l1(header_with(1)); });
}

TEST(SnapshotTable, RandomBytesNeverCrash) {
  const unsigned seed = test_seed();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 20000; ++round) {
    Bytes bytes = two_entries();
    for (unsigned change = random() % 5; change > 0; --change) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random() % 3 == 0 ? random() : 0xff);
    }
    bytes.resize(random() % (bytes.size() + 1));
    for (const Mode mode : {Mode::strict, Mode::tolerant}) {
      try {
        decode(bytes, 1 + random() % 3, mode).encode();
      } catch (const Error&) {
      }
    }
  }
}

// Two bitmaps, "b0" and "off", the second in use.
Bytes directory() {
  Bytes bytes(64);
  store_be(&bytes[0], std::uint64_t{0x90000});
  store_be(&bytes[8], std::uint32_t{1});
  store_be(&bytes[12], std::uint32_t{2});
  store_be(&bytes[16], std::uint32_t{0x01100002});
  std::memcpy(&bytes[24], "b0", 2);
  store_be(&bytes[32], std::uint64_t{0xa0000});
  store_be(&bytes[40], std::uint32_t{3});
  store_be(&bytes[44], std::uint32_t{1});
  store_be(&bytes[48], std::uint32_t{0x01090003});
  std::memcpy(&bytes[56], "off", 3);
  return bytes;
}

Header header_with_bitmaps(std::uint32_t count = 2) {
  Header h = CreateOptions().header(64 << 20);
  h.autoclear_features = autoclear::bitmaps;
  h.bitmaps = BitmapsExtension{count, {HostOffset(0x80000), 64}};
  return h;
}

TEST(BitmapDirectory, IsRead) {
  const auto bitmaps = decode_bitmap_directory(directory(), header_with_bitmaps());
  ASSERT_EQ(bitmaps.size(), 2u);
  EXPECT_EQ(bitmaps[0].name, "b0");
  EXPECT_TRUE(bitmaps[0].automatic);
  EXPECT_FALSE(bitmaps[0].in_use);
  EXPECT_EQ(bitmaps[0].granularity(), 65536u);
  EXPECT_EQ(bitmaps[1].name, "off");
  EXPECT_TRUE(bitmaps[1].in_use);
  EXPECT_EQ(bitmaps[1].table, (HostRange{HostOffset(0xa0000), 24}));
}

TEST(BitmapDirectory, EveryRuleIsChecked) {
  struct Case {
    std::function<void(Bytes&)> change;
    const char* message;
  };
  const auto set8 = [](std::size_t at, std::uint8_t v) {
    return [=](Bytes& b) { b[at] = static_cast<std::byte>(v); };
  };
  const auto set32 = [](std::size_t at, std::uint32_t v) {
    return [=](Bytes& b) { store_be(&b[at], v); };
  };
  const Case cases[] = {
      {set8(16, 2), "type 2"},
      {set8(15, 6), "flags"},
      {set32(20, 8), "extra data"},
      {set8(17, 8), "granularity 2^8"},
      {set8(17, 32), "granularity 2^32"},
      {set8(17, 255), "granularity"},
      {set8(19, 0), "name of 0"},
      {set32(16, 0x01100400), "name of 1024"},
      {set8(6, 2), "table offset 0x90200"},
      {set32(4, 0), "table offset 0x0"},
      {set32(0, 0x80000000), "table offset"},
      {set32(8, 0), "table of 0"},
      {set32(8, 2), "not the 1"},
      {set32(8, UINT32_MAX), "table of"},
      {[](Bytes& b) { b.resize(60); }, "ends inside"},
      {[](Bytes& b) { b.resize(40); }, "ends inside"},
      {[](Bytes& b) { b.resize(32); }, "the header says there are 2"},
      {[](Bytes& b) { b.insert(b.end(), b.begin(), b.begin() + 32); }, "more entries"},
      {[](Bytes& b) { std::copy_n(b.begin(), 32, b.begin() + 32); }, "same name"},
  };
  for (const Case& c : cases) {
    Bytes bytes = directory();
    c.change(bytes);
    expect_error(EINVAL, c.message, [&] { decode_bitmap_directory(bytes, header_with_bitmaps()); });
  }
}

TEST(BitmapDirectory, TableEntriesAreClustersOrConstants) {
  const Header h = header_with_bitmaps();
  EXPECT_TRUE(decode_bitmap_table_entry(0, h).empty());
  EXPECT_TRUE(decode_bitmap_table_entry(1, h).empty());
  EXPECT_EQ(decode_bitmap_table_entry(0x90000, h), (HostRange{HostOffset(0x90000), 65536}));
  for (const std::uint64_t bad : {0x90001ull, 0x2ull, 0x90200ull, 1ull << 56 | 0x90000}) {
    expect_error(EINVAL, "table entry", [&] { decode_bitmap_table_entry(bad, h); });
  }
}

TEST(ImageInfo, TellsWhatTheMetadataSays) {
  Header h = header_with_bitmaps();
  h.backing_name = "base.img";
  h.backing_format = "raw";
  h.incompatible_features = incompatible::dirty;
  const auto bitmaps = decode_bitmap_directory(directory(), h);
  const DriverInfo info = image_info(h, decode(real_entry, 1), bitmaps);
  EXPECT_EQ(info.cluster_size, 65536u);
  EXPECT_EQ(info.dirty, true);
  EXPECT_EQ(info.backing_filename, "base.img");
  EXPECT_EQ(info.backing_format, "raw");
  EXPECT_EQ(info.vm_state_offset, std::uint64_t{512} << 20);
  const Value::Dict& snapshot = info.snapshots.as_list().at(0).as_dict();
  EXPECT_EQ(*snapshot.find("id"), Value("1"));
  EXPECT_EQ(*snapshot.find("icount"), Value(0));
  const Value::Dict& data = info.format_specific.as_dict().find("data")->as_dict();
  EXPECT_EQ(*data.find("compat"), Value("1.1"));
  EXPECT_EQ(*data.find("refcount-bits"), Value(16));
  EXPECT_EQ(data.find("bitmaps")->as_list().size(), 2u);
  EXPECT_EQ(*data.find("compression-type"), Value("zlib"));
  EXPECT_FALSE(data.contains("data-file"));
}

TEST(ImageInfo, Version2SaysLess) {
  Header h = CreateOptions().header(1 << 20);
  h.version = 2;
  const DriverInfo info = image_info(h, {}, {});
  const Value::Dict& data = info.format_specific.as_dict().find("data")->as_dict();
  EXPECT_EQ(data.size(), 3u);
  EXPECT_EQ(*data.find("compat"), Value("0.10"));
  EXPECT_TRUE(info.snapshots.is_null());
}

}  // namespace
}  // namespace vise::qcow2
