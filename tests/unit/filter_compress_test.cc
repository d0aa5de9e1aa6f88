// The compress filter above a driver that can hold compressed clusters (and one that cannot
// replace them), loaded as the plugin it ships as.
#include <gtest/gtest.h>

#include <random>

#include "memory_driver.h"

namespace vise {
namespace {

using test::GraphTest;
using test::memory_options;
using test::MemoryDisk;

constexpr std::uint64_t cluster = 65536;

class FilterCompress : public GraphTest {
 protected:
  FilterCompress() {
    disk_.bytes.resize(8 * cluster);
    disk_.limits.cluster_size = cluster;
    disk_.limits.can_compress = true;
    disk_.limits.request_alignment = 512;
    disk_.on_request = [this](const char* request, GuestRange range) {
      const std::string_view name = request;
      if (name == "flush" || name == "truncate") return;
      log_ += std::string(name) + " " + std::to_string(range.start.bytes() / cluster) + "+" +
              std::to_string(divide_up(range.length, cluster)) + "\n";
    };
  }

  std::unique_ptr<Child> open_filter(const char* mode = "new-writes", Value level = 0) {
    Value::Dict options;
    options.set("driver", "compress");
    options.set("mode", mode);
    options.set("level", std::move(level));
    options.set("file", memory_options(disk_));
    return open(std::move(options));
  }
  void write(Child& disk, std::uint64_t offset, std::size_t length, int value = 7) {
    const std::vector<std::byte> bytes(length, static_cast<std::byte>(value));
    run(disk.write(GuestOffset(offset), ConstIoVec(std::span(bytes))));
  }
  std::string take_log() { return std::exchange(log_, {}); }

  MemoryDisk disk_;
  std::string log_;
};

TEST_F(FilterCompress, NewClustersAreCompressed) {
  auto root = open_filter();
  write(*root, 0, 3 * cluster);
  EXPECT_EQ(take_log(), "compressed 0+3\n");
  run(root->detach());
}

TEST_F(FilterCompress, APartOfAClusterIsPaddedByReadModifyWrite) {
  auto root = open_filter();
  write(*root, 4096, 4096, 1);
  EXPECT_EQ(take_log(), "read 0+1\ncompressed 0+1\n");
  write(*root, 8192, 4096, 2);  // what QEMU's filter refuses
  EXPECT_EQ(take_log(), "read 0+1\nwrite 0+1\n");
  EXPECT_EQ(disk_.bytes[4095], std::byte{0});
  EXPECT_EQ(disk_.bytes[4096], std::byte{1});
  EXPECT_EQ(disk_.bytes[8192], std::byte{2});
  run(root->detach());
}

TEST_F(FilterCompress, ReadsAreNotPadded) {
  auto root = open_filter();
  EXPECT_EQ(root->limits().request_alignment, 512u);
  EXPECT_EQ(root->limits().write_alignment, cluster);
  run(root->detach());
}

TEST_F(FilterCompress, NewWritesLeavesAllocatedClustersNormal) {
  auto root = open_filter();
  write(*root, 2 * cluster, cluster);
  take_log();
  write(*root, 0, 5 * cluster);
  EXPECT_EQ(take_log(), "compressed 0+2\nwrite 2+1\ncompressed 3+2\n");
  run(root->detach());
}

TEST_F(FilterCompress, AllWritesCompressesOverwrites) {
  auto root = open_filter("all-writes");
  write(*root, 2 * cluster, cluster);
  take_log();
  write(*root, 0, 5 * cluster);
  EXPECT_EQ(take_log(), "compressed 0+5\n");
  run(root->detach());
}

TEST_F(FilterCompress, AllWritesFallsBackWhereTheDriverCannotReplace) {
  disk_.cannot_replace_compressed = true;
  auto root = open_filter("all-writes");
  write(*root, 2 * cluster, cluster, 1);
  take_log();
  write(*root, 0, 5 * cluster, 2);
  EXPECT_EQ(take_log(), "compressed 0+2\nwrite 2+1\ncompressed 3+2\n");
  write(*root, 0, 5 * cluster, 3);
  EXPECT_EQ(take_log(), "write 0+5\n");
  EXPECT_EQ(disk_.bytes[0], std::byte{3});
  EXPECT_EQ(disk_.bytes[5 * cluster - 1], std::byte{3});
  run(root->detach());
}

TEST_F(FilterCompress, EveryOverwriteSucceedsInBothModes) {
  for (const char* mode : {"new-writes", "all-writes"}) {
    for (const bool cannot_replace : {false, true}) {
      disk_.cannot_replace_compressed = cannot_replace;
      disk_.limits.can_zero = cannot_replace;
      disk_.bytes.resize(8 * cluster - 1000);
      std::fill(disk_.bytes.begin(), disk_.bytes.end(), std::byte{0});
      disk_.allocated.clear();
      std::vector<std::byte> model(disk_.size());
      auto root = open_filter(mode);
      std::mt19937 random(1);
      for (int i = 0; i < 100; ++i) {
        const std::uint64_t offset = random() % disk_.size();
        const std::uint64_t length =
            std::min<std::uint64_t>(random() % (3 * cluster) + 1, disk_.size() - offset);
        const int value = static_cast<int>(random() % 3);
        write(*root, offset, length, value);
        std::fill_n(model.begin() + offset, length, static_cast<std::byte>(value));
      }
      EXPECT_TRUE(disk_.bytes == model) << mode;
      run(root->detach());
    }
  }
}

TEST_F(FilterCompress, ThePartialLastClusterIsCompressedToo) {
  disk_.bytes.resize(2 * cluster + 512);
  auto root = open_filter();
  write(*root, 2 * cluster, 512);
  EXPECT_EQ(take_log(), "compressed 2+1\n");
  write(*root, 2 * cluster + 100, 10, 3);
  EXPECT_EQ(disk_.bytes[2 * cluster + 100], std::byte{3});
  EXPECT_EQ(disk_.bytes[2 * cluster + 99], std::byte{7});
  EXPECT_EQ(disk_.size(), 2 * cluster + 512);
  run(root->detach());
}

TEST_F(FilterCompress, ZeroClustersBecomeZeroWrites) {
  disk_.limits.can_zero = true;
  disk_.limits.zero_alignment = cluster;
  auto root = open_filter();
  std::vector<std::byte> bytes(4 * cluster);
  bytes[cluster + 5] = std::byte{1};
  run(root->write(GuestOffset(0), ConstIoVec(std::span(bytes))));
  EXPECT_EQ(take_log(), "zeroes 0+1\ncompressed 1+1\nzeroes 2+2\n");
  run(root->detach());
}

TEST_F(FilterCompress, FuaCostsOneFlush) {
  auto root = open_filter();
  write(*root, cluster, cluster);
  disk_.flushes = 0;
  const std::vector<std::byte> bytes(3 * cluster, std::byte{1});
  run(root->write(GuestOffset(0), ConstIoVec(std::span(bytes)), WriteFlags{.fua = true}));
  EXPECT_EQ(disk_.flushes, 1u);
  run(root->detach());
}

TEST_F(FilterCompress, AChildThatCannotCompressIsRefused) {
  disk_.limits.can_compress = false;
  OpenRequest request;
  request.options.set("driver", "compress");
  request.options.set("file", memory_options(disk_));
  int code = 0;
  const std::string text = failure(graph_.open_root(std::move(request)), &code);
  EXPECT_EQ(code, ENOTSUP);
  EXPECT_NE(text.find("driver 'memory'"), std::string::npos) << text;
  EXPECT_TRUE(graph_.nodes().empty());
}

TEST_F(FilterCompress, LevelsAreThoseOfTheCodec) {
  struct Case {
    Codec codec;
    int level;
    bool fits;
  };
  for (const auto& [codec, level, fits] :
       {Case{Codec::deflate, 9, true}, Case{Codec::deflate, 13, false}, Case{Codec::zstd, 19, true},
        Case{Codec::zstd, 20, false}}) {
    disk_.limits.codec = codec;
    OpenRequest request;
    request.options.set("driver", "compress");
    request.options.set("level", level);
    request.options.set("file", memory_options(disk_));
    int code = 0;
    std::string text;
    std::shared_ptr<Node> node;
    try {
      node = run(graph_.open(std::move(request)));
    } catch (const Error& error) {
      text = error.what();
      code = error.code();
    }
    EXPECT_EQ(text.empty(), fits) << level << ": " << text;
    EXPECT_EQ(code, fits ? 0 : EINVAL);
    if (node) run(graph_.release(node));
  }
}

}  // namespace
}  // namespace vise
