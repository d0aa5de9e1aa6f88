// Which clusters of an image have to move for the file to get shorter.
#include "format/qcow2/move_plan.h"

#include <gtest/gtest.h>

#include <memory>

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t cluster_size = 65536;

Geometry make_geometry() {
  Header header;
  header.version = 3;
  header.cluster_bits = 16;
  return Geometry(header);
}

HostOffset at(std::uint64_t cluster, std::uint64_t byte = 0) {
  return HostOffset(cluster * cluster_size + byte);
}

class QcowMovePlan : public testing::Test {
 protected:
  /// A plan for a file of so many clusters, of which the first `used` are in use.
  std::unique_ptr<MovePlan> plan(std::uint64_t clusters, std::uint64_t used) {
    auto made = std::make_unique<MovePlan>(geometry_, clusters);
    for (std::uint64_t c = 0; c < used; ++c) made->counts.set(c, 1);
    return made;
  }
  Descriptor normal(std::uint64_t cluster) const {
    return Descriptor::normal(geometry_, at(cluster));
  }
  /// Compressed extents of `length` bytes, one behind the other, that fill a cluster from its start
  /// on as far as `count` of them go; they are counted.
  void pack(MovePlan& plan, std::uint64_t cluster, unsigned count, std::uint64_t length) {
    plan.counts.set(cluster, count);
    for (unsigned i = 0; i < count; ++i) {
      plan.add_compressed(Descriptor::compressed_at(at(cluster, i * length), length));
    }
  }

  const Geometry geometry_ = make_geometry();
};

TEST_F(QcowMovePlan, AFileWithoutFreeClustersStaysAsItIs) {
  EXPECT_FALSE(plan(100, 100)->choose(nullptr));
  EXPECT_FALSE(plan(100, 60)->choose(nullptr)) << "free clusters at the end are just cut off";
}

TEST_F(QcowMovePlan, WhatLiesBehindTheNumberOfClustersInUseMoves) {
  const auto p = plan(100, 40);
  for (const std::uint64_t c : {70, 71, 99}) p->counts.set(c, 1);
  ASSERT_TRUE(p->choose(nullptr));
  EXPECT_EQ(p->boundary(), 43u);
  EXPECT_TRUE(p->moves(normal(70)));
  EXPECT_TRUE(p->moves(normal(43)));
  EXPECT_FALSE(p->moves(normal(42)));
  Descriptor shared = normal(70);
  shared.copied = false;
  EXPECT_FALSE(p->moves(shared));
  EXPECT_FALSE(p->moves(Descriptor::zeroes(geometry_)));
  EXPECT_TRUE(p->behind(Descriptor::compressed_at(at(42, 60000), 9000))) << "it ends behind";
  EXPECT_FALSE(p->behind(Descriptor::compressed_at(at(42, 100), 9000)));
}

TEST_F(QcowMovePlan, CompressedClustersBesideThoseOfSnapshotsStay) {
  const auto p = plan(100, 10);
  pack(*p, 80, 4, 8192);
  pack(*p, 81, 4, 8192);
  p->counts.set(81, 5);  // one reference that no active entry makes
  ASSERT_TRUE(p->choose(nullptr));
  EXPECT_TRUE(p->moves(Descriptor::compressed_at(at(80, 8192), 8192)));
  EXPECT_FALSE(p->moves(Descriptor::compressed_at(at(81, 8192), 8192)));
}

TEST_F(QcowMovePlan, MostlyEmptyClustersAreRepackedFirstAndOnce) {
  const auto fill = [&](MovePlan& p) {
    for (std::uint64_t c = 20; c < 40; ++c) pack(p, c, 1, 6000);  // a tenth
    pack(p, 40, 8, 8000);                                         // almost full
  };
  const auto first = plan(100, 20);
  fill(*first);
  ASSERT_TRUE(first->choose(nullptr));
  EXPECT_EQ(first->boundary(), UINT64_MAX) << "this round only repacks";
  EXPECT_TRUE(first->moves(Descriptor::compressed_at(at(25), 6000)));
  EXPECT_FALSE(first->moves(Descriptor::compressed_at(at(40), 8000)));
  EXPECT_FALSE(first->moves(normal(50)));

  const auto second = plan(100, 20);
  fill(*second);
  EXPECT_FALSE(second->choose(first.get())) << "41 clusters of 41 are in use";
}

TEST_F(QcowMovePlan, AFewMostlyEmptyClustersAreNotWorthIt) {
  const auto p = plan(1000, 990);
  for (std::uint64_t c = 100; c < 108; ++c) pack(*p, c, 1, 6000);
  EXPECT_FALSE(p->choose(nullptr));
}

TEST_F(QcowMovePlan, ARoundThatDidNotHelpIsTheLast) {
  const auto make = [&](std::uint64_t last) {
    auto p = plan(100, 40);
    p->counts.set(last, 1);
    return p;
  };
  const auto first = make(90);
  ASSERT_TRUE(first->choose(nullptr));
  const auto better = make(80);
  EXPECT_TRUE(better->choose(first.get()));
  const auto same = make(80);
  EXPECT_FALSE(same->choose(better.get()));
  const auto worse = make(85);
  EXPECT_FALSE(worse->choose(better.get()));
}

}  // namespace
}  // namespace vise::qcow2
