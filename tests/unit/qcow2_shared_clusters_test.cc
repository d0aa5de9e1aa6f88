// Which host clusters of snapshots can be replaced, and which L2 entries change with them.
#include "format/qcow2/shared_clusters.h"

#include <gtest/gtest.h>

#include <array>

#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

Geometry make_geometry(bool extended = false) {
  Header header;
  header.version = 3;
  header.cluster_bits = 16;
  if (extended) header.incompatible_features |= incompatible::extended_l2;
  return Geometry(header);
}

class QcowSharedEntries : public testing::Test {
 protected:
  /// Adds the entry for `descriptor` at slot `place` of a table.
  void add(const SharedTable& table, std::uint64_t place, const Descriptor& descriptor) {
    std::array<std::byte, 16> bytes{};
    const Descriptor::Words words = descriptor.encode(geometry_);
    store_be(bytes.data(), words.word);
    store_be(bytes.data() + 8, words.bitmap);
    entries_.add(table, HostOffset(place), std::span(bytes).first(geometry_.l2_entry_size));
  }
  static Descriptor data(const Geometry& geometry, std::uint64_t cluster, bool copied = false) {
    Descriptor d = Descriptor::normal(geometry, HostOffset(cluster << 16));
    d.copied = copied;
    return d;
  }

  const Geometry geometry_ = make_geometry();
  SharedEntries entries_{geometry_};
  const SharedTable own_{.offset = HostOffset(0x10000), .times = 1, .is_active = true};
  const SharedTable old_{.offset = HostOffset(0x20000), .times = 1};
  const SharedTable older_{.offset = HostOffset(0x30000), .times = 3};
};

TEST_F(QcowSharedEntries, EntriesOfOneHostClusterAreOneWithAllItsReferences) {
  add(own_, 100, data(geometry_, 7));
  add(old_, 200, data(geometry_, 7));
  add(older_, 300, data(geometry_, 9));
  const std::vector<SharedCluster> found = entries_.take();
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].host.bytes(), 7u << 16);
  EXPECT_EQ(found[0].references, 2u);
  EXPECT_EQ(found[0].entries, (std::vector{HostOffset(100), HostOffset(200)}));
  EXPECT_EQ(found[1].references, 3u) << "the table hangs below three L1 tables";
  EXPECT_EQ(found[1].entries, std::vector{HostOffset(300)});
  EXPECT_TRUE(entries_.take().empty()) << "it starts anew";
}

TEST_F(QcowSharedEntries, WhatIsNoDataOrTheDisksAloneIsLeftOut) {
  add(own_, 100, data(geometry_, 7, true));
  add(old_, 200, Descriptor::compressed_at(HostOffset(0x50000), 700));
  add(old_, 208, Descriptor::zeroes(geometry_));
  add(old_, 216, Descriptor::unallocated());
  Descriptor preallocated = Descriptor::zeroes(geometry_);
  preallocated.has_host = true;
  preallocated.host = HostOffset(0x90000);
  add(old_, 224, preallocated);
  EXPECT_TRUE(entries_.take().empty());
}

TEST_F(QcowSharedEntries, EntriesThatDisagreeLeaveTheClusterWhereItIs) {
  Descriptor preallocated = Descriptor::zeroes(geometry_);
  preallocated.has_host = true;
  preallocated.host = HostOffset(7 << 16);
  add(old_, 100, data(geometry_, 7));
  add(own_, 200, preallocated);
  EXPECT_TRUE(entries_.take().empty());
}

TEST(QcowSharedEntriesExtended, SubclustersMustBeCompleteAndTheSame) {
  const Geometry geometry = make_geometry(true);
  SharedEntries entries(geometry);
  const SharedTable table{.offset = HostOffset(0x20000), .times = 1};
  const auto add = [&](std::uint64_t cluster, std::uint32_t allocated, std::uint32_t zero) {
    Descriptor d = Descriptor::normal(geometry, HostOffset(cluster << 16));
    d.copied = false;
    d.allocated = allocated;
    d.zero = zero;
    std::array<std::byte, 16> bytes{};
    const Descriptor::Words words = d.encode(geometry);
    store_be(bytes.data(), words.word);
    store_be(bytes.data() + 8, words.bitmap);
    entries.add(table, HostOffset(16), bytes);
  };
  add(5, 0x0000ffff, 0xffff0000);
  add(6, 0x0000ffff, 0x0fff0000);  // the rest comes from the backing image
  add(7, 0xffffffff, 0);
  add(7, 0x7fffffff, 0x80000000);
  const std::vector<SharedCluster> found = entries.take();
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].host.bytes(), 5u << 16);
  EXPECT_EQ(found[0].zero, 0xffff0000u);
}

}  // namespace
}  // namespace vise::qcow2
