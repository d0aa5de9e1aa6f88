// The generic request path against a model: whatever the driver's limits are, what was written
// reads back, and the driver sees only requests that obey them (memory_driver.h checks that).
#include <gtest/gtest.h>

#include <random>

#include "memory_driver.h"

namespace vise {
namespace {

using test::GraphTest;
using test::memory_options;
using test::MemoryDisk;

/// One set of limits and a disk size.
struct Shape {
  const char* name;
  std::uint32_t alignment;
  std::uint32_t write_alignment;
  std::uint32_t memory_alignment;
  std::uint64_t max_transfer;
  std::uint32_t max_segments;
  std::uint64_t zero_alignment;
  std::uint64_t size;
};

constexpr Shape shapes[] = {
    {"Bytes", 1, 0, 1, 0, 0, 0, 300'001},
    {"BytesShort", 1, 0, 1, 1000, 2, 0, 300'001},
    {"Sectors", 512, 0, 1, 0, 0, 0, 512 * 600},
    {"SectorsOddSize", 512, 0, 512, 0, 0, 4096, 512 * 600 + 77},
    {"SectorsShort", 512, 0, 512, 1536, 1, 0, 512 * 600 + 1},
    {"Pages", 4096, 0, 4096, 0, 0, 65536, 4096 * 80},
    {"PagesOddSize", 4096, 0, 512, 8192, 3, 65536, 4096 * 80 + 511},
    {"Clusters", 65536, 0, 1, 0, 0, 0, 65536 * 6},
    {"ClustersOddSize", 65536, 0, 4096, 65536, 2, 0, 65536 * 6 - 12345},
    {"WriteClusters", 512, 65536, 1, 0, 0, 0, 65536 * 6 - 512},
    {"WriteClustersOddSize", 1, 65536, 1, 131072, 0, 65536, 65536 * 6 - 1},
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) { return out << shape.name; }

/// A vector of random, often odd segments over memory of its own.
class Scattered {
 public:
  Scattered(std::mt19937_64& random, std::uint64_t length) {
    const bool aligned = random() % 2 == 0;
    while (length > 0) {
      std::uint64_t part = random() % 3 == 0 ? random() % 700 + 1 : length;
      if (aligned) part = align_up(part, 4096);
      part = std::min(part, length);
      const std::size_t shift = aligned ? 0 : random() % 5;
      buffers_.emplace_back(part + shift);
      segments_.push_back(IoSegment(buffers_.back().span().subspan(shift)));
      length -= part;
    }
  }
  IoVec vec() { return IoVec(std::span<const IoSegment>(segments_)); }
  void fill(std::mt19937_64& random) {
    const bool zero = random() % 4 == 0;
    vec().for_each([&](std::span<std::byte> part) {
      for (std::byte& byte : part) byte = zero ? std::byte{0} : static_cast<std::byte>(random());
    });
  }

 private:
  std::vector<Buffer> buffers_;
  std::vector<IoSegment> segments_;
};

class GraphRequestModel : public GraphTest, public ::testing::WithParamInterface<Shape> {
 protected:
  GraphRequestModel() {
    const Shape& shape = GetParam();
    disk_.bytes.resize(shape.size);
    disk_.limits = {.request_alignment = shape.alignment,
                    .write_alignment = shape.write_alignment,
                    .memory_alignment = shape.memory_alignment,
                    .max_transfer = shape.max_transfer,
                    .max_segments = shape.max_segments,
                    .zero_alignment = shape.zero_alignment,
                    .max_zeroes = 3 * std::max<std::uint64_t>(shape.zero_alignment, 65536),
                    .max_discard = 1 << 17,
                    .can_zero = true,
                    .can_discard = true};
  }

  GuestRange random_range() {
    const std::uint64_t size = disk_.size();
    std::uint64_t start = random_() % size;
    std::uint64_t length = random_() % std::min<std::uint64_t>(size - start, 200'000) + 1;
    const std::uint64_t alignment = std::uint64_t{1} << (random_() % 17);
    if (random_() % 2 == 0) {
      start = align_down(start, alignment);
      length = std::min(align_up(length, alignment), size - start);
    }
    if (random_() % 8 == 0) length = size - start > 100'000 ? length : size - start;
    return {GuestOffset(start), length};
  }

  void step(Child& disk) {
    const GuestRange range = random_range();
    const std::size_t start = range.start.bytes();
    switch (random_() % 6) {
      case 0:
      case 1: {
        Scattered data(random_, range.length);
        data.fill(random_);
        run(disk.write(range.start, data.vec(), WriteFlags{.fua = random_() % 8 == 0}));
        data.vec().copy_to(std::span(model_).subspan(start, range.length));
        break;
      }
      case 2:
        run(disk.write_zeroes(
            range, ZeroFlags{.may_unmap = random_() % 2 == 0, .fua = random_() % 8 == 0}));
        std::fill_n(model_.begin() + start, range.length, std::byte{0});
        break;
      case 3:
        run(disk.discard(range));
        take_discarded(range);
        break;
      default: {
        Scattered data(random_, range.length);
        run(disk.read(range.start, data.vec()));
        std::vector<std::byte> read(range.length);
        data.vec().copy_to(read);
        ASSERT_EQ(std::memcmp(read.data(), model_.data() + start, range.length), 0) << start;
      }
    }
  }

  // Each byte is as before or zero, and only whole units are touched.
  void take_discarded(GuestRange range) {
    for (std::size_t i = range.start.bytes(); i < range.end().bytes(); ++i) {
      ASSERT_TRUE(disk_.bytes[i] == model_[i] || disk_.bytes[i] == std::byte{0});
      model_[i] = disk_.bytes[i];
    }
  }

  std::uint64_t seed_ = std::getenv("VISE_TEST_SEED") != nullptr
                            ? std::strtoull(std::getenv("VISE_TEST_SEED"), nullptr, 10)
                            : std::random_device()();
  std::mt19937_64 random_{seed_};
  MemoryDisk disk_;
  std::vector<std::byte> model_;
};

TEST_P(GraphRequestModel, WhatWasWrittenReadsBack) {
  SCOPED_TRACE(::testing::Message() << "VISE_TEST_SEED=" << seed_);
  model_.resize(disk_.size());
  auto root = open(disk_);
  for (int i = 0; i < 150 && !HasFatalFailure() && !HasNonfatalFailure(); ++i) step(*root);
  EXPECT_TRUE(disk_.bytes == model_);
  run(root->detach());
}

TEST_P(GraphRequestModel, ZeroBuffersBecomeZeroWrites) {
  SCOPED_TRACE(::testing::Message() << "VISE_TEST_SEED=" << seed_);
  model_.resize(disk_.size());
  Value::Dict options = memory_options(disk_);
  options.set("detect-zeroes", "unmap");
  auto root = open(std::move(options));
  for (int i = 0; i < 80 && !HasFatalFailure() && !HasNonfatalFailure(); ++i) step(*root);
  EXPECT_TRUE(disk_.bytes == model_);
  run(root->detach());
}

// A driver that cannot write zeros gets them as data, in bounded pieces.
TEST_P(GraphRequestModel, ZeroesFallBackToData) {
  SCOPED_TRACE(::testing::Message() << "VISE_TEST_SEED=" << seed_);
  model_.resize(disk_.size());
  disk_.limits.can_zero = random_() % 2 == 0;
  disk_.on_request = [](const char* request, GuestRange) {
    if (std::string_view(request) == "zeroes") throw Error(ENOTSUP, "not here");
  };
  auto root = open(disk_);
  for (int i = 0; i < 80 && !HasFatalFailure() && !HasNonfatalFailure(); ++i) step(*root);
  EXPECT_TRUE(disk_.bytes == model_);
  run(root->detach());
}

Task<void> write_bytes(Child& disk, GuestRange range, std::byte value) {
  const std::vector<std::byte> data(range.length, value);
  co_await disk.write(range.start, ConstIoVec(std::span(data)));
}

// Neighbours in one unit, written at once: none may undo another by its read-modify-write.
TEST_P(GraphRequestModel, ConcurrentPartsOfOneUnitAllArrive) {
  SCOPED_TRACE(::testing::Message() << "VISE_TEST_SEED=" << seed_);
  disk_.yields = true;
  auto root = open(disk_);
  std::vector<std::byte> expected(disk_.size());
  for (int round = 0; round < 10; ++round) {
    TaskScope scope;
    std::uint64_t at = random_() % 1000;
    while (at < disk_.size()) {
      const std::uint64_t length = std::min(random_() % 9000 + 1, disk_.size() - at);
      const auto value = static_cast<std::byte>(random_());
      scope.spawn(write_bytes(*root, {GuestOffset(at), length}, value));
      std::fill_n(expected.begin() + at, length, value);
      at += length + random_() % 3;
    }
    run(scope.join());
    ASSERT_TRUE(disk_.bytes == expected) << round;
  }
  run(root->detach());
}

// Overlapping requests may win in any order, but each lands as a whole in each unit.
TEST_P(GraphRequestModel, OverlappingWritesLeaveOneOfTheirValues) {
  SCOPED_TRACE(::testing::Message() << "VISE_TEST_SEED=" << seed_);
  disk_.yields = true;
  auto root = open(disk_);
  for (int round = 0; round < 10; ++round) {
    std::vector<GuestRange> ranges;
    TaskScope scope;
    for (int i = 1; i <= 20; ++i) {
      ranges.push_back(random_range());
      scope.spawn(write_bytes(*root, ranges.back(), static_cast<std::byte>(i)));
    }
    run(scope.join());
    for (std::size_t at = 0; at < disk_.size(); at += 97) {
      const auto value = static_cast<std::size_t>(disk_.bytes[at]);
      bool possible = value == 0;
      bool written = false;
      for (std::size_t i = 0; i < ranges.size(); ++i) {
        if (!ranges[i].contains(GuestOffset(at))) continue;
        written = true;
        possible = possible || value == i + 1;
      }
      ASSERT_TRUE(possible && (value != 0 || !written)) << at;
    }
    std::fill(disk_.bytes.begin(), disk_.bytes.end(), std::byte{0});
  }
  run(root->detach());
}

INSTANTIATE_TEST_SUITE_P(, GraphRequestModel, ::testing::ValuesIn(shapes),
                         [](const auto& shape) { return std::string(shape.param.name); });

class GraphRequest : public GraphTest {
 protected:
  GraphRequest() { disk_.bytes.resize(1 << 20); }
  std::vector<std::byte> data(std::size_t length) { return std::vector(length, std::byte{7}); }
  std::string write_failure(Child& disk, std::uint64_t at, std::size_t length, int* code,
                            WriteFlags flags = {}) {
    const auto bytes = data(length);
    return failure(disk.write(GuestOffset(at), ConstIoVec(std::span(bytes)), flags), code);
  }
  void write(Child& disk, std::uint64_t at, std::size_t length, WriteFlags flags = {}) {
    const auto bytes = data(length);
    run(disk.write(GuestOffset(at), ConstIoVec(std::span(bytes)), flags));
  }
  MemoryDisk disk_;
};

TEST_F(GraphRequest, RequestsPastTheEndFail) {
  auto root = open(disk_);
  std::vector<std::byte> buffer(10);
  struct Case {
    std::uint64_t offset;
    std::size_t length;
  };
  for (const auto& [offset, length] :
       {Case{(1 << 20) - 9, 10}, Case{1 << 20, 1}, Case{UINT64_MAX - 3, 10}, Case{UINT64_MAX, 1}}) {
    int code = 0;
    const IoVec vec(buffer.data(), length);
    EXPECT_NE(failure(root->read(GuestOffset(offset), vec), &code).find("past the end"),
              std::string::npos);
    EXPECT_EQ(code, EIO);
    write_failure(*root, offset, length, &code);
    EXPECT_EQ(code, EIO);
    failure(root->write_zeroes(GuestRange{GuestOffset(offset), length}), &code);
    EXPECT_EQ(code, EIO);
    failure(root->discard(GuestRange{GuestOffset(offset), length}), &code);
    EXPECT_EQ(code, EIO);
    failure(root->map(GuestRange{GuestOffset(offset), length}), &code);
    EXPECT_EQ(code, EIO);
  }
  EXPECT_EQ(disk_.reads + disk_.writes + disk_.zeroes + disk_.discards, 0u);
  run(root->detach());
}

TEST_F(GraphRequest, EmptyRequestsAtTheEndAreFine) {
  auto root = open(disk_);
  run(root->read(GuestOffset(1 << 20), IoVec()));
  run(root->write(GuestOffset(1 << 20), ConstIoVec()));
  run(root->write_zeroes(GuestRange{GuestOffset(1 << 20), 0}));
  EXPECT_EQ(disk_.reads + disk_.writes, 0u);
  run(root->detach());
}

TEST_F(GraphRequest, WritesToAReadOnlyNodeFail) {
  auto root = open(memory_options(disk_), true);
  int code = 0;
  EXPECT_NE(write_failure(*root, 0, 512, &code).find("read-only"), std::string::npos);
  EXPECT_EQ(code, EROFS);
  failure(root->truncate(0), &code);
  EXPECT_EQ(code, EROFS);
  run(root->detach());
}

TEST_F(GraphRequest, WritesWithoutPermissionFail) {
  auto root = open(disk_);
  run(root->set_permissions({Permission::consistent_read, Permissions::all()}));
  int code = 0;
  write_failure(*root, 0, 512, &code);
  EXPECT_EQ(code, EPERM);
  run(root->set_permissions({Permission::write_unchanged, Permissions::all()}));
  EXPECT_NE(write_failure(*root, 0, 512, &code), "");
  write(*root, 0, 512, WriteFlags{.unchanged = true});
  run(root->detach());
}

TEST_F(GraphRequest, FuaIsEmulatedByAFlush) {
  auto root = open(disk_);
  write(*root, 0, 512, WriteFlags{.fua = true});
  EXPECT_EQ(disk_.fua_writes, 0u);
  EXPECT_EQ(disk_.flushes, 1u);
  run(root->write_zeroes(GuestRange{GuestOffset(0), 512}, ZeroFlags{.fua = true}));
  EXPECT_EQ(disk_.flushes, 2u);
  run(root->detach());
}

TEST_F(GraphRequest, NativeFuaReachesTheDriver) {
  disk_.limits.native_fua = true;
  disk_.limits.request_alignment = 512;
  auto root = open(disk_);
  write(*root, 3, 1000, WriteFlags{.fua = true});
  EXPECT_EQ(disk_.fua_writes, 1u);
  EXPECT_EQ(disk_.flushes, 0u);
  run(root->detach());
}

TEST_F(GraphRequest, NoFlushDropsFlushesAndFua) {
  Value::Dict options = memory_options(disk_);
  options.set("cache.no-flush", "on");
  auto root = open(std::move(options));
  write(*root, 0, 512, WriteFlags{.fua = true});
  run(root->flush());
  EXPECT_EQ(disk_.flushes, 0u);
  run(root->detach());
}

TEST_F(GraphRequest, AProtocolIsFlushedOnlyAfterAChange) {
  auto root = open(disk_);
  run(root->flush());
  run(root->flush());
  EXPECT_EQ(disk_.flushes, 1u);
  write(*root, 0, 512);
  run(root->flush());
  EXPECT_EQ(disk_.flushes, 2u);
  run(root->detach());
}

TEST_F(GraphRequest, AFailedFlushIsTriedAgain) {
  auto root = open(disk_);
  disk_.on_request = [](const char* request, GuestRange) {
    if (std::string_view(request) == "flush") throw Error(EIO, "no");
  };
  EXPECT_NE(failure(root->flush()), "");
  EXPECT_NE(failure(root->flush()), "");
  disk_.on_request = nullptr;
  run(root->detach());
}

TEST_F(GraphRequest, DiscardObeysTheNodesOption) {
  disk_.limits.can_discard = true;
  Value::Dict options = memory_options(disk_);
  options.set("discard", "ignore");
  auto root = open(std::move(options));
  run(root->discard(GuestRange{GuestOffset(0), 4096}));
  EXPECT_EQ(disk_.discards, 0u);
  run(root->detach());
}

TEST_F(GraphRequest, DiscardSparesPartialUnits) {
  disk_.limits.can_discard = true;
  disk_.limits.discard_alignment = 4096;
  disk_.bytes.assign((1 << 20) - 100, std::byte{1});
  auto root = open(disk_);
  run(root->discard(GuestRange{GuestOffset(1), 4095}));
  EXPECT_EQ(disk_.discards, 0u);
  run(root->discard(GuestRange{GuestOffset(1), 3 * 4096}));
  EXPECT_EQ(disk_.bytes[4095], std::byte{1});
  EXPECT_EQ(disk_.bytes[4096], std::byte{0});
  EXPECT_EQ(disk_.bytes[3 * 4096], std::byte{1});
  // The last unit ends with the disk and is whole.
  run(root->discard(GuestRange{GuestOffset((1 << 20) - 4096), 3996}));
  EXPECT_EQ(disk_.bytes.back(), std::byte{0});
  run(root->detach());
}

TEST_F(GraphRequest, NoFallbackRefusesToWriteZerosAsData) {
  auto root = open(disk_);
  int code = 0;
  failure(root->write_zeroes(GuestRange{GuestOffset(0), 512}, ZeroFlags{.no_fallback = true}),
          &code);
  EXPECT_EQ(code, ENOTSUP);
  EXPECT_EQ(disk_.writes, 0u);
  run(root->detach());
}

TEST_F(GraphRequest, CompressedWritesMustCoverWholeClusters) {
  disk_.bytes.resize((1 << 20) + 1000);
  disk_.limits.cluster_size = 65536;
  int code = 0;
  {
    auto root = open(disk_);
    write_failure(*root, 0, 65536, &code, WriteFlags{.compressed = true});
    EXPECT_EQ(code, ENOTSUP);
    run(root->detach());
  }
  disk_.limits.can_compress = true;
  auto root = open(disk_);
  for (const auto& [offset, length] : {std::pair(512, 65536), std::pair(0, 4096)}) {
    EXPECT_NE(write_failure(*root, offset, length, &code, WriteFlags{.compressed = true}), "");
    EXPECT_EQ(code, EINVAL);
  }
  write(*root, 65536, 2 * 65536, WriteFlags{.compressed = true});
  write(*root, 1 << 20, 1000, WriteFlags{.compressed = true});
  EXPECT_EQ(disk_.compressed_writes, 2u);
  run(root->detach());
}

TEST_F(GraphRequest, ALargeRequestIsSplitBelowTwoGigabytes) {
  disk_.limits.max_transfer = 65536;
  auto root = open(disk_);
  write(*root, 0, 1 << 20);
  EXPECT_EQ(disk_.writes, 16u);
  run(root->detach());
}

TEST_F(GraphRequest, AnAlignedRequestGoesStraightThrough) {
  disk_.limits.request_alignment = 4096;
  disk_.limits.memory_alignment = 512;
  auto root = open(disk_);
  Buffer buffer = Buffer::zeroed(8192);
  run(root->write(GuestOffset(4096), ConstIoVec(buffer.span())));
  run(root->read(GuestOffset(4096), IoVec(buffer.span())));
  EXPECT_EQ(disk_.writes, 1u);
  EXPECT_EQ(disk_.reads, 1u);
  run(root->detach());
}

TEST_F(GraphRequest, TruncateChangesTheSizeOnlyWhereAllowed) {
  auto root = open(disk_);
  int code = 0;
  failure(root->truncate(100, TruncateOptions{.allow_shrink = false}), &code);
  EXPECT_EQ(code, EINVAL);
  failure(root->truncate(std::uint64_t{1} << 63), &code);
  EXPECT_EQ(code, EFBIG);
  run(root->truncate(100));
  EXPECT_EQ(root->size(), 100u);
  run(root->detach());
}

// A later overlapping request waits for a serialising one, an earlier one is waited for.
TEST_F(GraphRequest, SerialisingRequestsKeepOthersOut) {
  auto root = open(disk_);
  disk_.hold = true;
  TaskScope scope;
  scope.spawn(write_bytes(*root, {GuestOffset(0), 4096}, std::byte{1}));
  const std::vector<std::byte> two(4096, std::byte{2});
  scope.spawn(
      root->write(GuestOffset(2048), ConstIoVec(std::span(two)), WriteFlags{.serialising = true}));
  scope.spawn(write_bytes(*root, {GuestOffset(4096), 4096}, std::byte{3}));
  scope.spawn(write_bytes(*root, {GuestOffset(8192), 4096}, std::byte{4}));
  run(context_.loop().yield());
  EXPECT_EQ(disk_.in_flight, 2u);  // the first, and the one that overlaps nothing
  disk_.hold = false;
  disk_.held.wake_all();
  run(scope.join());
  EXPECT_EQ(disk_.bytes[2047], std::byte{1});
  EXPECT_EQ(disk_.bytes[2048], std::byte{2});
  EXPECT_EQ(disk_.bytes[4095], std::byte{2});
  EXPECT_EQ(disk_.bytes[4096], std::byte{3});
  run(root->detach());
}

}  // namespace
}  // namespace vise
