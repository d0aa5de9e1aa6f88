// The cache of decoded clusters: one decode for many readers, heads that give way to the whole.
#include "format/qcow2/decoded_cache.h"

#include <gtest/gtest.h>

#include "vise/context.h"
#include "vise/error.h"

namespace vise::qcow2 {
namespace {

using Extent = DecodedCache::Extent;

class DecodedCacheTest : public testing::Test {
 protected:
  static constexpr std::uint64_t cluster_size = 4096;

  // As a read of `length` bytes does it; `log_` tells what was decoded.
  Task<std::uint64_t> read(std::uint64_t host, std::uint64_t length) {
    DecodedCache::Decode decode = [this, host, length](Extent extent) {
      return this->decode(host, extent == Extent::head ? length : cluster_size);
    };
    const auto entry = co_await cache_.get(HostOffset(host), length, std::move(decode));
    EXPECT_EQ(std::to_integer<std::uint64_t>(entry->cluster.span()[length - 1]), host);
    co_return entry->cluster.size();
  }
  Task<Buffer> decode(std::uint64_t host, std::uint64_t length) {
    log_ += std::to_string(host) + ":" + std::to_string(length) + " ";
    co_await EventLoop::current().yield();
    if (fails_) throw Error(EIO, "damaged");
    Buffer buffer(length);
    std::ranges::fill(buffer.span(), static_cast<std::byte>(host));
    co_return buffer;
  }
  Task<void> several(std::vector<std::uint64_t> lengths) {
    TaskScope scope;
    for (const std::uint64_t length : lengths) scope.spawn(one(length));
    co_await scope.join();
  }
  Task<void> one(std::uint64_t length) {
    const std::uint64_t got = co_await read(5, length);
    EXPECT_GE(got, length);
  }
  template <class T>
  T run(Task<T> task) {
    return context_.loop().run(std::move(task));
  }

  Context context_;
  DecodedCache cache_{3 * cluster_size};
  std::string log_;
  bool fails_ = false;
};

TEST_F(DecodedCacheTest, AHeadServesThoseItIsLongEnoughFor) {
  EXPECT_EQ(run(read(1, 100)), 100u);
  EXPECT_EQ(run(read(1, 60)), 100u);
  EXPECT_EQ(log_, "1:100 ");
}

TEST_F(DecodedCacheTest, WhoComesBackForMoreGetsTheWhole) {
  run(read(1, 100));
  EXPECT_EQ(run(read(1, 200)), cluster_size);
  EXPECT_EQ(run(read(1, 4096)), cluster_size);
  EXPECT_EQ(log_, "1:100 1:4096 ");
}

TEST_F(DecodedCacheTest, ReadersAtTheSameTimeShareDecodes) {
  run(several({100, 50, 100}));
  EXPECT_EQ(log_, "5:100 ");
  run(several({200, 300, 4096, 10}));
  EXPECT_EQ(log_, "5:100 5:4096 ");
}

TEST_F(DecodedCacheTest, WhatFailedIsNotKept) {
  fails_ = true;
  EXPECT_THROW(run(several({100, 200})), Error);
  fails_ = false;
  EXPECT_EQ(run(read(5, 100)), 100u);
}

TEST_F(DecodedCacheTest, TheLeastRecentlyUsedGoesFirst) {
  for (const std::uint64_t host : {1, 2, 3, 1, 4}) run(read(host, cluster_size));
  EXPECT_EQ(log_, "1:4096 2:4096 3:4096 4:4096 ");
  run(read(1, cluster_size));
  run(read(2, cluster_size));
  EXPECT_EQ(log_, "1:4096 2:4096 3:4096 4:4096 2:4096 ");
}

TEST_F(DecodedCacheTest, ForgottenPlacesAreDecodedAnew) {
  run(read(1, 100));
  run(read(7, 100));
  cache_.forget({HostOffset(0), 5});
  run(read(1, 100));
  run(read(7, 100));
  EXPECT_EQ(log_, "1:100 7:100 1:100 ");
}

}  // namespace
}  // namespace vise::qcow2
