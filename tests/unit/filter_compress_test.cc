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

  // Without the write buffer, unless a test is about it.
  std::unique_ptr<Child> open_filter(const char* mode = "new-writes", Value level = 0,
                                     std::uint64_t buffer = 0) {
    Value::Dict options;
    options.set("write-buffer-size", buffer);
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
    for (const std::uint64_t buffer : {std::uint64_t{0}, cluster, 4 * cluster})
      for (const bool cannot_replace : {false, true}) {
        disk_.cannot_replace_compressed = cannot_replace;
        disk_.limits.can_zero = cannot_replace;
        disk_.bytes.resize(8 * cluster - 1000);
        std::fill(disk_.bytes.begin(), disk_.bytes.end(), std::byte{0});
        disk_.allocated.clear();
        std::vector<std::byte> model(disk_.size());
        auto root = open_filter(mode, 0, buffer);
        std::mt19937 random(1);
        for (int i = 0; i < 100; ++i) {
          const std::uint64_t offset = random() % disk_.size();
          const std::uint64_t length =
              std::min<std::uint64_t>(random() % (3 * cluster) + 1, disk_.size() - offset);
          const int value = static_cast<int>(random() % 3);
          write(*root, offset, length, value);
          std::fill_n(model.begin() + offset, length, static_cast<std::byte>(value));
          std::vector<std::byte> seen(disk_.size());
          run(root->read(GuestOffset(0), IoVec(std::span(seen))));
          ASSERT_TRUE(seen == model) << mode << " after write " << i << ", buffer " << buffer;
        }
        run(root->flush());
        EXPECT_TRUE(disk_.bytes == model) << mode << ", buffer " << buffer;
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

TEST_F(FilterCompress, SequentialPartsCostOneCompressionAndNoRead) {
  auto root = open_filter("new-writes", 0, 16 * cluster);
  for (std::uint64_t at = 0; at < 2 * cluster; at += 4096) write(*root, at, 4096);
  run(root->flush());
  EXPECT_EQ(take_log(), "compressed 0+1\ncompressed 1+1\n");
  EXPECT_EQ(disk_.reads, 0u);
  run(root->detach());
}

TEST_F(FilterCompress, AFlushReadsWhatIsMissingAndStoresIt) {
  disk_.bytes[10] = std::byte{9};
  auto root = open_filter("all-writes", 0, 16 * cluster);
  write(*root, 4096, 4096, 1);
  EXPECT_EQ(take_log(), "");
  EXPECT_EQ(disk_.bytes[4096], std::byte{0});
  std::vector<std::byte> seen(8192);
  run(root->read(GuestOffset(0), IoVec(std::span(seen))));
  EXPECT_EQ(seen[10], std::byte{9});
  EXPECT_EQ(seen[4096], std::byte{1});
  take_log();
  run(root->flush());
  EXPECT_EQ(take_log(), "read 0+1\nread 0+1\ncompressed 0+1\n");
  EXPECT_EQ(disk_.bytes[4096], std::byte{1});
  EXPECT_EQ(disk_.bytes[10], std::byte{9});
  EXPECT_EQ(disk_.flushes, 1u);
  run(root->detach());
}

TEST_F(FilterCompress, FuaWritesOutOnlyWhatItTouched) {
  auto root = open_filter("new-writes", 0, 16 * cluster);
  write(*root, 0, 4096);
  const std::vector<std::byte> bytes(4096, std::byte{1});
  run(root->write(GuestOffset(3 * cluster), ConstIoVec(std::span(bytes)), WriteFlags{.fua = true}));
  EXPECT_EQ(take_log(), "read 3+1\ncompressed 3+1\n");
  EXPECT_EQ(disk_.flushes, 1u);
  run(root->detach());
}

TEST_F(FilterCompress, PartsOfAllocatedClustersPassUnpaddedInNewWrites) {
  auto root = open_filter("new-writes", 0, 16 * cluster);
  write(*root, 0, cluster);
  take_log();
  disk_.reads = 0;
  write(*root, 4096, 4096, 2);
  EXPECT_EQ(take_log(), "write 0+1\n");
  EXPECT_EQ(disk_.reads, 0u);
  EXPECT_EQ(disk_.bytes[4096], std::byte{2});
  run(root->detach());
}

TEST_F(FilterCompress, TheBufferStaysWithinItsSize) {
  auto root = open_filter("new-writes", 0, 2 * cluster);
  for (std::uint64_t i = 0; i < 6; ++i) write(*root, i * cluster + 512, 512);
  EXPECT_EQ(disk_.compressed_writes, 4u);  // the oldest four went down
  EXPECT_EQ(disk_.bytes[512], std::byte{7});
  EXPECT_EQ(disk_.bytes[5 * cluster + 512], std::byte{0});
  run(root->detach());
  EXPECT_EQ(disk_.bytes[5 * cluster + 512], std::byte{7});
}

TEST_F(FilterCompress, WhoAsksWhereDataLiesSeesWhatWasBuffered) {
  auto root = open_filter("new-writes", 0, 16 * cluster);
  write(*root, cluster + 512, 512);
  run(root->map({GuestOffset(cluster), cluster}));
  EXPECT_EQ(disk_.bytes[cluster + 512], std::byte{7});
  run(root->detach());
}

TEST_F(FilterCompress, ZerosAndWholeClustersReplaceWhatWasBuffered) {
  disk_.limits.can_zero = true;
  auto root = open_filter("new-writes", 0, 16 * cluster);
  write(*root, 512, 512, 1);
  write(*root, cluster + 512, 512, 1);
  run(root->write_zeroes({GuestOffset(0), cluster}));
  write(*root, cluster, cluster, 2);
  run(root->flush());
  EXPECT_EQ(disk_.bytes[512], std::byte{0});
  EXPECT_EQ(disk_.bytes[cluster + 512], std::byte{2});
  run(root->detach());
}

TEST_F(FilterCompress, ADiscardThatTheChildIgnoresLeavesWhatWasBuffered) {
  disk_.limits.can_discard = true;
  for (const bool ignored : {true, false}) {
    SCOPED_TRACE(ignored);
    disk_.ignores_discards = ignored;
    auto root = open_filter("all-writes", 0, 16 * cluster);
    write(*root, 0, cluster, 1);
    write(*root, 4096, 4096, 2);
    run(root->discard({GuestOffset(0), 2 * cluster}));
    run(root->detach());
    EXPECT_EQ(disk_.bytes[0], ignored ? std::byte{1} : std::byte{0});
    EXPECT_EQ(disk_.bytes[4096], ignored ? std::byte{2} : std::byte{0});
  }
}

TEST_F(FilterCompress, AFailedWriteOutStaysBufferedAndTheFlushTells) {
  auto root = open_filter("new-writes", 0, 16 * cluster);
  bool full = true;
  const auto log = disk_.on_request;
  disk_.on_request = [&](const char* request, GuestRange) {
    if (full && std::string_view(request) == "compressed") throw Error::system_error(ENOSPC);
  };
  for (std::uint64_t at = 0; at < cluster; at += 4096) write(*root, at, 4096);
  int code = 0;
  failure(root->flush(), &code);
  EXPECT_EQ(code, ENOSPC);
  std::vector<std::byte> seen(cluster);
  run(root->read(GuestOffset(0), IoVec(std::span(seen))));
  EXPECT_EQ(seen[100], std::byte{7});
  full = false;
  run(root->flush());
  EXPECT_EQ(disk_.bytes[100], std::byte{7});
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
