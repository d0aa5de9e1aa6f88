// Which L2 tables the L1 tables of an image name at one index, and what these say together.
#include "format/qcow2/shared_tables.h"

#include <gtest/gtest.h>

#include "format/qcow2/snapshot_table.h"
#include "qcow2_file_fixture.h"
#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

using Words = std::vector<std::uint64_t>;

class QcowSharedTables : public QcowFileTest {
 protected:
  void SetUp() override { write_file(file(), std::vector<std::byte>(4u << 20)); }

  void store(Child& child, std::uint64_t place, const Words& words) {
    std::vector<std::byte> bytes(words.size() * 8);
    for (std::size_t i = 0; i < words.size(); ++i) store_be(&bytes[i * 8], words[i]);
    run(child.write(GuestOffset(place), ConstIoVec(std::span<const std::byte>(bytes))));
  }
  /// A snapshot whose L1 table at `place` holds `words`.
  Snapshot snapshot(Child& child, std::uint64_t place, const Words& words) {
    store(child, place, words);
    Snapshot made;
    made.l1_offset = HostOffset(place);
    made.l1_entries = static_cast<std::uint32_t>(words.size());
    return made;
  }
  std::vector<SharedTable> at(SharedTables& tables, std::uint64_t index) {
    run(tables.load(index));
    return tables.at(index);
  }

  Header header_ = [] {
    Header header;
    header.l1_offset = HostOffset(0x30000);
    return header;
  }();
  const Geometry geometry_{header_};
};

TEST_F(QcowSharedTables, EachTableComesOnceWithTheNumberOfItsUses) {
  with_file([&](Child& child) {
    const Words active = {0x110000 | entry_copied, 0x120000, 0};
    SharedTables tables(child, header_, geometry_, active);
    tables.add(snapshot(child, 0x40000, {0, 0x120000, 0x130000 | entry_copied}));
    tables.add(snapshot(child, 0x50000, {0, 0x120000, 0x130000, 0x140000}));
    EXPECT_EQ(tables.l1_entries(), 4u);
    EXPECT_EQ(tables.clusters(), 4u << geometry_.l2_bits);
    ASSERT_EQ(at(tables, 0).size(), 1u);
    EXPECT_EQ(at(tables, 0)[0].times, 1u);
    ASSERT_EQ(at(tables, 1).size(), 1u);
    EXPECT_EQ(at(tables, 1)[0].offset.bytes(), 0x120000u);
    EXPECT_EQ(at(tables, 1)[0].times, 3u);
    EXPECT_TRUE(at(tables, 1)[0].is_active);
    ASSERT_EQ(at(tables, 2).size(), 1u);
    EXPECT_EQ(at(tables, 2)[0].times, 2u);
    EXPECT_FALSE(at(tables, 2)[0].is_active);
    EXPECT_EQ(at(tables, 3).size(), 1u);
    EXPECT_TRUE(at(tables, 4).empty());
  });
}

TEST_F(QcowSharedTables, NamesAreTheEntriesThatLeadToATable) {
  with_file([&](Child& child) {
    const Words active = {0, 0x120000};
    SharedTables tables(child, header_, geometry_, active);
    tables.add(snapshot(child, 0x40000, {0, 0x120000 | entry_copied}));
    tables.add(snapshot(child, 0x50000, {0x120000, 0x130000}));
    run(tables.load(1));
    const auto names = tables.names(1, HostOffset(0x120000));
    ASSERT_EQ(names.size(), 2u);
    EXPECT_EQ(names[0].place.bytes(), 0x30008u);
    EXPECT_EQ(names[0].word, 0x120000u);
    EXPECT_EQ(names[1].place.bytes(), 0x40008u);
    EXPECT_EQ(names[1].word, 0x120000 | entry_copied) << "flags stay with the word";
  });
}

TEST_F(QcowSharedTables, AnL1TableThatSeveralSnapshotsHaveCountsForEach) {
  with_file([&](Child& child) {
    const Words active = {0x120000};
    SharedTables tables(child, header_, geometry_, active);
    const Snapshot first = snapshot(child, 0x40000, {0x120000});
    tables.add(first);
    tables.add(first);
    ASSERT_EQ(at(tables, 0).size(), 1u);
    EXPECT_EQ(at(tables, 0)[0].times, 3u);
    EXPECT_EQ(tables.names(0, HostOffset(0x120000)).size(), 2u) << "each place once";
  });
}

// Longer than what is read at a time, and walked back and forth.
TEST_F(QcowSharedTables, LongTablesAreReadBitByBit) {
  with_file([&](Child& child) {
    Words words(100'000);
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = (i + 1) << 16;
    const Words active;
    SharedTables tables(child, header_, geometry_, active);
    tables.add(snapshot(child, 0x40000, words));
    tables.add(snapshot(child, 0x200000, {0x70000}));
    for (const std::uint64_t index : {99'999u, 0u, 8191u, 8192u, 8193u, 50'000u, 63u, 64u}) {
      const std::vector<SharedTable> found = at(tables, index);
      ASSERT_EQ(found.size(), index == 0 ? 2u : 1u) << index;
      EXPECT_EQ(found[0].offset.bytes(), (index + 1) << 16);
    }
  });
}

TEST_F(QcowSharedTables, AWindowHoldsTheEntriesOfAllTablesSideBySide) {
  with_file([&](Child& child) {
    const Words active = {0x110000, 0x190000};
    SharedTables tables(child, header_, geometry_, active);
    tables.add(snapshot(child, 0x40000, {0x120000, 0}));
    store(child, 0x110000 + 5 * 8, {55, 66});
    store(child, 0x120000 + 5 * 8, {77, 88});
    const SharedWindow both = run(tables.window(5, WantedTables::shared));
    EXPECT_TRUE(both.in_snapshot);
    EXPECT_EQ(both.first, 5u);
    EXPECT_EQ(both.count, 8192u - 5);
    ASSERT_EQ(both.tables.size(), 2u);
    EXPECT_EQ(load_be<std::uint64_t>(both.entry(0, 0).data()), 55u);
    EXPECT_EQ(load_be<std::uint64_t>(both.entry(0, 1).data()), 66u);
    EXPECT_EQ(load_be<std::uint64_t>(both.entry(1, 1).data()), 88u);
    EXPECT_EQ(both.place(1, 1).bytes(), 0x120000u + 6 * 8);

    const SharedWindow alone = run(tables.window(8192 + 1, WantedTables::shared));
    EXPECT_FALSE(alone.in_snapshot);
    EXPECT_EQ(alone.count, 8191u);
    EXPECT_TRUE(alone.entries.empty()) << "nobody asked for what the disk has alone";
    const SharedWindow all = run(tables.window(8192 + 1, WantedTables::all));
    EXPECT_EQ(all.entries.size(), 8191u * 8);
    const SharedWindow none = run(tables.window(3 * 8192, WantedTables::all));
    EXPECT_TRUE(none.tables.empty());
    EXPECT_EQ(none.count, 8192u);
  });
}

TEST_F(QcowSharedTables, ManyTablesShareTheMemory) {
  with_file([&](Child& child) {
    const Words active = {0x110000};
    SharedTables tables(child, header_, geometry_, active);
    for (std::uint64_t i = 0; i < 512; ++i) {
      tables.add(snapshot(child, 0x200000 + (i << 16), {0x120000 + (i << 16)}));
    }
    const SharedWindow window = run(tables.window(0, WantedTables::shared));
    EXPECT_GT(window.tables.size(), 500u);
    EXPECT_LE(window.entries.size(), 1u << 20);
    EXPECT_GT(window.count, 0u);
  });
}

TEST_F(QcowSharedTables, AnEntryBetweenClustersIsCorrupt) {
  with_file([&](Child& child) {
    const Words active;
    SharedTables tables(child, header_, geometry_, active);
    tables.add(snapshot(child, 0x40000, {0x10200}));
    run(tables.load(0));
    EXPECT_THROW(static_cast<void>(tables.at(0)), Error);
  });
}

TEST_F(QcowSharedTables, AnL1TableOutOfPlaceIsRefused) {
  with_file([&](Child& child) {
    const Words active;
    SharedTables tables(child, header_, geometry_, active);
    Snapshot wrong;
    wrong.l1_offset = HostOffset(0x200);
    wrong.l1_entries = 1;
    EXPECT_THROW(tables.add(wrong), Error);
  });
}

}  // namespace
}  // namespace vise::qcow2
