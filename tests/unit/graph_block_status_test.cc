// block_status(): through filters and raw, down backing chains, up to a base.
#include <gtest/gtest.h>

#include "memory_driver.h"
#include "vise/filter.h"

namespace vise {
namespace {

using test::GraphTest;
using test::memory_options;
using test::MemoryDisk;

constexpr std::uint64_t cluster = 4096;

// A format without metadata: clusters are allocated where the file's are, else the backing image's.
class OverlayDriver final : public Filter {
 public:
  OverlayDriver(std::unique_ptr<Child> file, std::unique_ptr<Child> backing)
      : Filter(std::move(file)), backing_(std::move(backing)) {}
  Task<Extent> map(GuestRange range, MapMode mode) override { return child().map(range, mode); }
  Task<void> close() override {
    if (backing_) co_await backing_->detach();
    co_await Filter::close();
  }

 private:
  std::unique_ptr<Child> backing_;
};

Task<std::unique_ptr<Driver>> open_overlay(OpenContext& context) {
  std::unique_ptr<Child> file = co_await context.open_child(std::string("file"), EdgeRole::storage);
  std::unique_ptr<Child> backing =
      co_await context.open_child(std::string("backing"), EdgeRole::backing, OpenRequest());
  co_return std::make_unique<OverlayDriver>(std::move(file), std::move(backing));
}

Task<std::unique_ptr<Driver>> open_filter(OpenContext& context) {
  std::unique_ptr<Child> child =
      co_await context.open_child(std::string("file"), EdgeRole::filtered);
  co_return std::make_unique<Filter>(std::move(child));
}

const DriverType overlay_driver = {
    .name = "overlay", .kind = DriverKind::format, .open = open_overlay};
const DriverType through_driver = {
    .name = "through", .kind = DriverKind::filter, .open = open_filter};

class GraphBlockStatus : public GraphTest {
 protected:
  // top (4 clusters, the first its own) above a filter above base (3 clusters, the first two).
  GraphBlockStatus() {
    context_.drivers().add(overlay_driver);
    context_.drivers().add(through_driver);
    make(top_, 4, 1);
    make(base_, 3, 2);
    Value::Dict base = above("overlay", memory_options(base_));
    base.set("node-name", "base");
    Value::Dict top = above("overlay", memory_options(top_));
    top.set("backing", above("through", std::move(base)));
    root_ = open(above("through", std::move(top)));
  }
  ~GraphBlockStatus() override { run(root_->detach()); }

  static void make(MemoryDisk& disk, std::uint64_t clusters, std::size_t allocated) {
    disk.bytes.resize(clusters * cluster);
    disk.limits.cluster_size = cluster;
    disk.allocated.assign(clusters, false);
    std::fill_n(disk.allocated.begin(), allocated, true);
  }
  static Value::Dict above(const char* driver, Value::Dict file) {
    Value::Dict options;
    options.set("driver", driver);
    options.set("file", std::move(file));
    return options;
  }
  BlockStatus status(std::uint64_t first, std::uint64_t count, const Node* base = nullptr) {
    return run(block_status(root_->node(),
                            GuestRange{GuestOffset(first * cluster), count * cluster},
                            MapMode::precise, base));
  }

  MemoryDisk top_;
  MemoryDisk base_;
  std::unique_ptr<Child> root_;
};

TEST_F(GraphBlockStatus, FiltersAddNoDepth) {
  const BlockStatus own = status(0, 4);
  EXPECT_TRUE(own.data && own.allocated && !own.zero);
  EXPECT_EQ(own.depth, 0);
  EXPECT_EQ(own.length, cluster);
  EXPECT_EQ(own.host, HostOffset(0));
  EXPECT_EQ(own.file->type().name, "memory");
}

TEST_F(GraphBlockStatus, TheBackingImageIsOneDeeper) {
  const BlockStatus below = status(1, 3);
  EXPECT_TRUE(below.data && below.allocated);
  EXPECT_EQ(below.depth, 1);
  EXPECT_EQ(below.length, cluster);
  EXPECT_EQ(below.host, HostOffset(cluster));
}

TEST_F(GraphBlockStatus, WhatNobodyHasIsZeroAndNotAllocated) {
  const BlockStatus nothing = status(2, 2);
  EXPECT_TRUE(nothing.zero && !nothing.data && !nothing.allocated);
  EXPECT_EQ(nothing.depth, 1);
  EXPECT_EQ(nothing.length, cluster);
}

TEST_F(GraphBlockStatus, BeyondAShortBackingImageTheOverlayIsZero) {
  const BlockStatus beyond = status(3, 1);
  EXPECT_TRUE(beyond.zero && !beyond.allocated && !beyond.data);
  EXPECT_EQ(beyond.depth, 0);
}

TEST_F(GraphBlockStatus, StopsAtTheBase) {
  const BlockStatus above = status(1, 3, graph_.find("base"));
  EXPECT_FALSE(above.allocated || above.zero || above.data);
  EXPECT_EQ(above.length, 3 * cluster);
}

TEST_F(GraphBlockStatus, RawForwardsToItsFile) {
  Value::Dict options = above("raw", memory_options(base_));
  options.set("offset", cluster);
  auto raw = open(std::move(options));
  const BlockStatus data = run(block_status(raw->node(), GuestRange{GuestOffset(0), 2 * cluster}));
  EXPECT_TRUE(data.data);
  EXPECT_EQ(data.host, HostOffset(cluster));
  EXPECT_EQ(data.length, cluster);
  EXPECT_EQ(data.depth, 0);
  run(raw->detach());
}

TEST_F(GraphBlockStatus, RangesPastTheEndFail) {
  int code = 0;
  failure(block_status(root_->node(), GuestRange{GuestOffset(0), 5 * cluster}), &code);
  EXPECT_EQ(code, EIO);
}

}  // namespace
}  // namespace vise
