// The holes that earlier sessions have left in shared host clusters: found, used, and never more
// than what is certainly free.
#include "format/qcow2/hole_scan.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "format/qcow2/qcow2.h"
#include "qcow2_file_fixture.h"

namespace vise::qcow2 {
namespace {

using Ranges = std::vector<std::pair<std::uint64_t, std::uint64_t>>;  // offset, length

Ranges holes_of(const UseMap& uses, std::uint64_t cluster, std::uint64_t smallest = 512) {
  Ranges result;
  for (const HostRange& hole : uses.holes(cluster, smallest)) {
    result.emplace_back(hole.start.bytes(), hole.length);
  }
  return result;
}

TEST(UseMap, HolesLieBetweenTheSectorsOfExtents) {
  UseMap uses(10, 4, 12);
  uses.add({HostOffset(10 * 4096 + 100), 412});   // sector 0
  uses.add({HostOffset(10 * 4096 + 1536), 700});  // sectors 3 and 4
  uses.add({HostOffset(10 * 4096 + 2236), 100});  // starts where the last one ends
  EXPECT_EQ(uses.references(10), 3u);
  EXPECT_EQ(holes_of(uses, 10), (Ranges{{10 * 4096 + 512, 1024}, {10 * 4096 + 2560, 1536}}));
  EXPECT_EQ(holes_of(uses, 10, 1025), (Ranges{{10 * 4096 + 2560, 1536}}));
}

TEST(UseMap, ExtentsCountInEachClusterTheyTouch) {
  UseMap uses(10, 4, 12);
  uses.add({HostOffset(11 * 4096 + 4000), 200});
  uses.add({HostOffset(9 * 4096 + 4000), 200});   // begins before the map
  uses.add({HostOffset(13 * 4096 + 4000), 200});  // ends behind it
  uses.add({HostOffset(8 * 4096), 4096});
  uses.add({HostOffset(14 * 4096), 4096});
  EXPECT_EQ(uses.references(10), 1u);
  EXPECT_EQ(uses.references(11), 1u);
  EXPECT_EQ(uses.references(12), 1u);
  EXPECT_EQ(uses.references(13), 1u);
  EXPECT_EQ(holes_of(uses, 11), (Ranges{{11 * 4096, 3584}}));
  EXPECT_EQ(holes_of(uses, 12), (Ranges{{12 * 4096 + 512, 3584}}));
}

TEST(UseMap, ExcludedClustersStayUnknown) {
  UseMap uses(0, 2, 12);
  uses.exclude(1);
  uses.exclude(7);  // not in the map
  uses.add({HostOffset(4096), 512});
  EXPECT_EQ(uses.references(0), 0u);
  EXPECT_EQ(uses.references(1), 0u);
}

class HoleScanTest : public QcowFileTest {
 protected:
  static constexpr std::uint64_t cluster = 4096;
  static constexpr std::uint64_t clusters = 512;

  void SetUp() override {
    Value::Dict options;
    options.set("cluster_size", "4k");
    write_file(file(), new_image(options, clusters * cluster));
    model_.resize(clusters * cluster);
  }

  void open() {
    OpenRequest request;
    request.filename = file();
    request.format = "qcow2";
    request.defaults.discard_unmap = true;
    root_ = run(graph_.open_root(std::move(request)));
  }
  void close() {
    run(root_->detach());
    root_.reset();
  }
  Qcow2& image() { return dynamic_cast<Qcow2&>(root_->node().driver()); }
  std::uint64_t file_size() { return std::filesystem::file_size(file()); }

  /// Bytes of which about half are noise, so that a cluster is stored in about `noise` bytes.
  void write(std::uint64_t number, std::size_t noise) {
    std::vector<std::byte> bytes(cluster);
    for (std::size_t i = 0; i < noise; ++i) bytes[i] = static_cast<std::byte>(random_());
    bytes[cluster - 1] = std::byte{1};
    std::ranges::copy(bytes, model_.begin() + static_cast<std::ptrdiff_t>(number * cluster));
    WriteFlags flags;
    flags.compressed = true;
    run(root_->write(GuestOffset(number * cluster), ConstIoVec(std::span(bytes)), flags));
  }

  void expect_sound() {
    close();
    const CheckResult found = check(Repair::none);
    EXPECT_EQ(found.corruptions + found.leaks + found.check_errors, 0u) << findings_;
    open();
    std::vector<std::byte> content(model_.size());
    run(root_->read(GuestOffset(0), IoVec(std::span(content))));
    EXPECT_TRUE(content == model_) << "content differs";
  }

  std::unique_ptr<Child> root_;
  std::vector<std::byte> model_;
  std::mt19937 random_{7};
};

TEST_F(HoleScanTest, WhatAnEarlierSessionFreedIsUsedAgain) {
  open();
  for (std::uint64_t i = 0; i < clusters; ++i) write(i, 1800);
  // Every other one goes, so that all host clusters stay in use.
  for (std::uint64_t i = 0; i < clusters; i += 2)
    run(root_->discard({GuestOffset(i * cluster), cluster}));
  for (std::uint64_t i = 0; i < clusters; i += 2) {
    std::fill_n(model_.begin() + static_cast<std::ptrdiff_t>(i * cluster), cluster, std::byte{0});
  }
  expect_sound();
  const std::uint64_t before = file_size();
  write(0, 500);  // begins the search
  run(image().holes_searched());
  for (std::uint64_t i = 2; i < clusters; i += 2) write(i, 500);
  EXPECT_LT(file_size(), before + before / 16) << "the holes had room for nearly all";
  expect_sound();
  close();
}

TEST_F(HoleScanTest, FindsNothingInClustersSharedWithASnapshot) {
  open();
  for (std::uint64_t i = 0; i < clusters; ++i) write(i, 1200);
  NewSnapshot snapshot;
  snapshot.name = "s";
  run(root_->node().drain_begin());
  run(image().create_snapshot(snapshot));
  root_->node().drain_end();
  expect_sound();
  // The active disk gives up all, the snapshot keeps all.
  for (std::uint64_t i = 0; i < clusters; ++i) write(i, 300);
  expect_sound();
  write(1, 300);
  run(image().holes_searched());
  for (std::uint64_t i = 0; i < clusters; i += 3) write(i, 300);
  expect_sound();
  SnapshotSelector which;
  which.name = "s";
  run(root_->node().drain_begin());
  run(image().apply_snapshot(which));
  root_->node().drain_end();
  const CheckResult found = (close(), check(Repair::none));
  EXPECT_EQ(found.corruptions, 0u) << findings_;
}

TEST_F(HoleScanTest, RandomRewritesWhileTheSearchRuns) {
  for (int session = 0; session < 8; ++session) {
    open();
    for (int i = 0; i < 200; ++i) {
      // The loop turns between two requests, and so does the search.
      write(random_() % clusters, random_() % 1800);
      if (random_() % 16 == 0) run(root_->flush());
      if (random_() % 64 == 0) run(image().holes_searched());
    }
    expect_sound();
    close();
  }
}

TEST_F(HoleScanTest, ClosingInTheMiddleOfASearchIsFine) {
  open();
  for (std::uint64_t i = 0; i < clusters; ++i) write(i, 1200);
  for (int session = 0; session < 10; ++session) {
    close();
    open();
    write(static_cast<std::uint64_t>(session), 600);
  }
  expect_sound();
  close();
}

}  // namespace
}  // namespace vise::qcow2
