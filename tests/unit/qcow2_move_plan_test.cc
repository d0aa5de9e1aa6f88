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
  std::unique_ptr<MovePlan> plan(std::uint64_t clusters, std::uint64_t used,
                                 std::uint64_t max_count = 65535) {
    auto made = std::make_unique<MovePlan>(geometry_, clusters, max_count);
    for (std::uint64_t c = 0; c < used; ++c) made->counts.set(c, 1);
    return made;
  }
  Descriptor normal(std::uint64_t cluster) const {
    return Descriptor::normal(geometry_, at(cluster));
  }
  /// Compressed extents of `length` bytes, one behind the other, that fill a cluster from its start
  /// on as far as `count` of them go; they are counted.
  void pack(MovePlan& plan, std::uint64_t cluster, unsigned count, std::uint64_t length,
            std::uint64_t times = 1) {
    plan.counts.set(cluster, count * times);
    for (unsigned i = 0; i < count; ++i) {
      plan.add_compressed(Descriptor::compressed_at(at(cluster, i * length), length), times);
    }
  }

  static bool choose(MovePlan& plan, const std::optional<MovePlan::Outcome>& previous) {
    plan.has_room(previous);
    return plan.choose();
  }

  const Geometry geometry_ = make_geometry();
};

TEST_F(QcowMovePlan, AFileWithoutFreeClustersStaysAsItIs) {
  EXPECT_FALSE(choose(*plan(100, 100), {}));
  EXPECT_FALSE(choose(*plan(100, 60), {})) << "free clusters at the end are just cut off";
}

TEST_F(QcowMovePlan, WhatLiesBehindTheNumberOfClustersInUseMoves) {
  const auto p = plan(100, 40);
  for (const std::uint64_t c : {70, 71, 99}) p->counts.set(c, 1);
  ASSERT_TRUE(choose(*p, {}));
  EXPECT_EQ(p->boundary(), 43u);
  EXPECT_TRUE(p->moves(normal(70)));
  EXPECT_TRUE(p->moves(normal(43)));
  EXPECT_FALSE(p->moves(normal(42)));
  EXPECT_FALSE(p->moves(Descriptor::zeroes(geometry_)));
  EXPECT_TRUE(p->behind(Descriptor::compressed_at(at(42, 60000), 9000))) << "it ends behind";
  EXPECT_FALSE(p->behind(Descriptor::compressed_at(at(42, 100), 9000)));
}

TEST_F(QcowMovePlan, CompressedClustersBesideSomethingUnknownStay) {
  const auto p = plan(100, 10);
  pack(*p, 80, 4, 8192);
  pack(*p, 81, 4, 8192);
  p->counts.add(81, 1);  // a reference that no entry makes
  ASSERT_TRUE(choose(*p, {}));
  EXPECT_TRUE(p->moves(Descriptor::compressed_at(at(80, 8192), 8192)));
  EXPECT_FALSE(p->moves(Descriptor::compressed_at(at(81, 8192), 8192)));
}

TEST_F(QcowMovePlan, WhatSnapshotsMayShareMovesOnlyTogether) {
  const auto p = plan(100, 10);
  pack(*p, 80, 4, 8192, 3);
  p->counts.set(90, 1);
  p->add_shared_index(5);
  ASSERT_TRUE(choose(*p, {}));
  const Descriptor packed = Descriptor::compressed_at(at(80), 8192);
  EXPECT_TRUE(p->moves(packed));
  EXPECT_FALSE(p->moves_alone(5, packed)) << "a snapshot may have the same entry";
  EXPECT_TRUE(p->moves_alone(4, packed));
  EXPECT_TRUE(p->moves_alone(6, packed)) << "behind the last index that is shared";
  EXPECT_TRUE(p->moves_alone(5, normal(90))) << "its flag says that it is the disk's own";
  Descriptor shared = normal(90);
  shared.copied = false;
  EXPECT_FALSE(p->moves_alone(4, shared));
  EXPECT_TRUE(p->moves(shared));
}

TEST_F(QcowMovePlan, LongTablesFollowAllElse) {
  const auto p = plan(100, 40);
  for (std::uint64_t c = 80; c < 90; ++c) p->counts.set(c, 1);  // a table of ten clusters
  p->counts.set(95, 1);                                         // a table of one
  p->add_table({at(80), 9 * cluster_size + 8});
  p->add_table({at(95), 8});
  p->add_table({at(10), 5 * cluster_size});  // at the front already
  ASSERT_TRUE(choose(*p, {}));
  EXPECT_EQ(p->boundary(), 41u) << "51 in use, ten of them in a row";
  EXPECT_TRUE(p->behind(HostRange{at(80), 9 * cluster_size + 8}));
  EXPECT_TRUE(p->behind(HostRange{at(41), 1}));
  EXPECT_FALSE(p->behind(HostRange{at(10), 5 * cluster_size}));
  EXPECT_FALSE(p->behind(HostRange{at(40), cluster_size}));
  EXPECT_FALSE(p->behind(HostRange{at(95), 0}));
}

TEST_F(QcowMovePlan, ALongTableAcrossTheBoundaryIsBehindIt) {
  const auto p = plan(100, 30);
  for (std::uint64_t c = 33; c < 39; ++c) p->counts.set(c, 1);
  p->counts.set(60, 1);
  p->add_table({at(33), 6 * cluster_size});
  ASSERT_TRUE(choose(*p, {}));
  EXPECT_EQ(p->boundary(), 31u) << "37 in use, six of them in a row";
}

TEST_F(QcowMovePlan, MostlyEmptyClustersAreRepackedFirstAndOnce) {
  const auto fill = [&](MovePlan& p) {
    for (std::uint64_t c = 20; c < 40; ++c) pack(p, c, 1, 6000);  // a tenth
    pack(p, 40, 8, 8000);                                         // almost full
  };
  const auto first = plan(100, 20);
  fill(*first);
  ASSERT_TRUE(choose(*first, {}));
  EXPECT_EQ(first->boundary(), UINT64_MAX) << "this round only repacks";
  EXPECT_TRUE(first->moves(Descriptor::compressed_at(at(25), 6000)));
  EXPECT_FALSE(first->moves(Descriptor::compressed_at(at(40), 8000)));
  EXPECT_FALSE(first->moves(normal(50)));

  const auto second = plan(100, 20);
  fill(*second);
  EXPECT_FALSE(choose(*second, first->outcome())) << "41 clusters of 41 are in use";
}

// Extents that begin in a mostly empty cluster and end in a full one leave that emptier.
TEST_F(QcowMovePlan, RoomThatMovingWouldOnlyShiftIsNotWorthIt) {
  const auto fill = [&](std::uint64_t from) {
    auto p = plan(100, 20);
    for (std::uint64_t c = 20; c < 60; c += 2) {
      p->counts.set(c, 1);
      p->counts.set(c + 1, 2);
      p->add_compressed(Descriptor::compressed_at(at(c, from), 60000));
      p->add_compressed(Descriptor::compressed_at(at(c + 1, from - 5000), 60000 - from));
    }
    return p;
  };
  const auto far = fill(30000);  // half of it is in the next cluster
  ASSERT_TRUE(far->has_room({}));
  for (std::uint64_t c = 20; c < 60; c += 2) {
    far->weigh(Descriptor::compressed_at(at(c, 30000), 60000));
    far->weigh(Descriptor::compressed_at(at(c + 1, 25000), 30000));
  }
  EXPECT_FALSE(far->choose());
  const auto near = fill(30000);
  ASSERT_TRUE(near->has_room({}));
  EXPECT_TRUE(near->choose()) << "if nothing lay elsewhere";
  EXPECT_EQ(near->boundary(), UINT64_MAX);
}

TEST_F(QcowMovePlan, ClustersThatCountAllTheyCanAreNotEmpty) {
  const auto fill = [&](std::uint64_t max_count) {
    auto p = plan(100, 20, max_count);
    for (std::uint64_t c = 20; c < 40; ++c) pack(*p, c, 1, 6000, 3);
    return p;
  };
  const auto narrow = fill(3);
  EXPECT_FALSE(choose(*narrow, {})) << "no second extent could be counted there";
  const auto wide = fill(255);
  ASSERT_TRUE(choose(*wide, {}));
  EXPECT_TRUE(wide->moves(Descriptor::compressed_at(at(25), 6000)));
}

TEST_F(QcowMovePlan, AFewMostlyEmptyClustersAreNotWorthIt) {
  const auto p = plan(1000, 990);
  for (std::uint64_t c = 100; c < 108; ++c) pack(*p, c, 1, 6000);
  EXPECT_FALSE(choose(*p, {}));
}

TEST_F(QcowMovePlan, OneThatStayedAtTheEndGetsAnotherRound) {
  const auto make = [&](std::uint64_t more) {
    auto p = plan(100, 40);
    for (std::uint64_t c = 50; c < 50 + more; ++c) p->counts.set(c, 1);
    p->counts.set(90, 1);
    return p;
  };
  const auto first = make(5);
  ASSERT_TRUE(choose(*first, {}));
  const auto second = plan(100, 48);  // it needs more clusters now, but only one is out of place
  second->counts.set(90, 1);
  ASSERT_TRUE(choose(*second, first->outcome()));
  const auto third = plan(100, 48);
  third->counts.set(90, 1);
  EXPECT_FALSE(choose(*third, second->outcome()));
}

TEST_F(QcowMovePlan, ARoundThatDidNotHelpIsTheLast) {
  const auto make = [&](std::uint64_t last) {
    auto p = plan(100, 40);
    p->counts.set(last, 1);
    return p;
  };
  const auto first = make(90);
  ASSERT_TRUE(choose(*first, {}));
  const auto better = make(80);
  EXPECT_TRUE(choose(*better, first->outcome()));
  const auto same = make(80);
  EXPECT_FALSE(choose(*same, better->outcome()));
  const auto worse = make(85);
  EXPECT_FALSE(choose(*worse, better->outcome()));
}

}  // namespace
}  // namespace vise::qcow2
