// Copying from file to file by the host: what crosses the edges, what is declined, and that what
// was declined has changed nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "graph/bitmaps.h"
#include "tests/unit/memory_driver.h"
#include "tests/unit/temporary_file.h"

namespace vise::test {
namespace {

constexpr std::uint64_t KiB = 1024;

class CopyRange : public GraphTest {
 protected:
  ~CopyRange() override {
    for (auto& root : roots_) run(root->detach());
  }

  static std::string noise(unsigned seed, std::size_t size) {
    std::mt19937 random(seed);
    std::string bytes(size, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    return bytes;
  }

  static Value::Dict file(const TemporaryFile& file) {
    Value::Dict options;
    options.set("driver", "file");
    options.set("filename", file.path());
    return options;
  }
  static Value::Dict raw(const TemporaryFile& below) {
    Value::Dict options;
    options.set("driver", "raw");
    options.set("file", file(below));
    return options;
  }

  Child& attach(Value::Dict options, bool read_only = false) {
    roots_.push_back(open(std::move(options), read_only));
    return *roots_.back();
  }
  std::uint64_t copy(Child& source, std::uint64_t from, std::uint64_t length, Child& target,
                     std::uint64_t to, WriteFlags flags = {}) {
    return run(source.copy_range({GuestOffset(from), length}, target, GuestOffset(to), flags));
  }

  TemporaryFile source_, target_;
  MemoryDisk disk_;
  std::vector<std::unique_ptr<Child>> roots_;
};

TEST_F(CopyRange, TheHostCopiesFromFileToFileAtAnyOffset) {
  const std::string content = noise(1, 300 * KiB + 100);
  source_.set_content(content);
  target_.set_content(std::string(400 * KiB, 'x'));
  Child& source = attach(raw(source_), true);
  Child& target = attach(raw(target_));
  ASSERT_EQ(copy(source, 1001, 200 * KiB + 7, target, 4099), 200 * KiB + 7);
  std::string expected(400 * KiB, 'x');
  std::copy_n(content.begin() + 1001, 200 * KiB + 7, expected.begin() + 4099);
  EXPECT_TRUE(target_.content() == expected);
}

TEST_F(CopyRange, WindowsOfFilesAreCopiedFromAndTo) {
  source_.set_content(noise(2, 64 * KiB));
  target_.set_content(std::string(64 * KiB, 'x'));
  Value::Dict window = raw(source_);
  window.set("offset", 4096);
  window.set("size", 8192);
  Value::Dict other = raw(target_);
  other.set("offset", 512);
  ASSERT_EQ(copy(attach(std::move(window), true), 1024, 7168, attach(std::move(other)), 1024),
            7168u);
  EXPECT_TRUE(target_.content().substr(1536, 7168) == source_.content().substr(5120, 7168));
  EXPECT_TRUE(target_.content().substr(8704) == std::string(64 * KiB - 8704, 'x'));
}

TEST_F(CopyRange, AFileCopiesInsideItselfButNotOverItself) {
  const std::string content = noise(3, 64 * KiB);
  source_.set_content(content);
  Child& root = attach(raw(source_));
  EXPECT_EQ(copy(root, 0, 16 * KiB, root, 32 * KiB), 16 * KiB);
  EXPECT_EQ(copy(root, 0, 16 * KiB, root, 8 * KiB), 0u);
  const std::string expected =
      content.substr(0, 32 * KiB) + content.substr(0, 16 * KiB) + content.substr(48 * KiB);
  EXPECT_TRUE(source_.content() == expected);
}

// Files grow where their edge may resize them, as by writing.
TEST_F(CopyRange, AFileGrowsByWhatIsCopiedBehindItsEnd) {
  source_.set_content(noise(4, 16 * KiB));
  target_.set_content("short");
  Child& source = attach(file(source_), true);
  Child& target = attach(file(target_));
  const PermissionSet wanted = target.permissions().uses | Permission::resize;
  run(target.set_permissions({wanted, Permissions::all()}));
  ASSERT_EQ(copy(source, 0, 16 * KiB, target, 8 * KiB), 16 * KiB);
  EXPECT_EQ(target.size(), 24 * KiB);
  EXPECT_TRUE(target_.content().substr(8 * KiB) == source_.content());
}

TEST_F(CopyRange, WhatIsCopiedIsRecordedAsDirty) {
  source_.set_content(noise(5, 64 * KiB));
  target_.set_size(256 * KiB);
  Child& source = attach(raw(source_), true);
  Child& target = attach(raw(target_));
  add_bitmap(target.node(), {.name = "changes", .granularity = 4096});
  ASSERT_EQ(copy(source, 0, 64 * KiB, target, 128 * KiB), 64 * KiB);
  EXPECT_EQ(get_bitmap(target.node(), "changes").bits.dirty_bytes(), 64 * KiB);
}

struct DeclinedCase {
  const char* name;
  std::uint64_t from, to, length;
  const char* source_driver = "raw";
  const char* target_driver = "raw";
  const char* detect_zeroes = "off";
  bool compressed = false;
};
void PrintTo(const DeclinedCase& c, std::ostream* out) { *out << c.name; }

class CopyRangeDeclines : public CopyRange, public testing::WithParamInterface<DeclinedCase> {
 protected:
  Value::Dict options(const char* driver, const TemporaryFile& below) {
    if (std::string(driver) == "memory") return memory_options(disk_);
    Value::Dict result = raw(below);
    if (std::string(driver) == "raw") return result;
    Value::Dict above;
    above.set("driver", driver);
    above.set(std::string(driver) == "blkdebug" ? "image" : "file", std::move(result));
    return above;
  }
};

TEST_P(CopyRangeDeclines, WithNothingChanged) {
  const DeclinedCase& c = GetParam();
  source_.set_content(noise(6, 64 * KiB));
  target_.set_content(std::string(64 * KiB, 'x'));
  disk_.bytes.resize(64 * KiB);
  Child& source = attach(options(c.source_driver, source_), true);
  Value::Dict target_options = options(c.target_driver, target_);
  target_options.set("detect-zeroes", c.detect_zeroes);
  Child& target = attach(std::move(target_options));
  EXPECT_EQ(copy(source, c.from, c.length, target, c.to, {.compressed = c.compressed}), 0u);
  EXPECT_EQ(disk_.reads + disk_.writes, 0u);
  EXPECT_TRUE(target_.content() == std::string(64 * KiB, 'x'));
}

INSTANTIATE_TEST_SUITE_P(
    Graph, CopyRangeDeclines,
    testing::Values(DeclinedCase{"OfNothing", 0, 0, 0},
                    DeclinedCase{"FromMemory", 0, 0, 4096, "memory"},
                    DeclinedCase{"ToMemory", 0, 0, 4096, "raw", "memory"},
                    DeclinedCase{"FromAFilter", 0, 0, 4096, "copy-on-read"},
                    DeclinedCase{"ToAFilter", 0, 0, 4096, "raw", "blkdebug"},
                    DeclinedCase{"WhereZerosAreLookedFor", 0, 0, 4096, "raw", "raw", "on"},
                    DeclinedCase{"CompressedWrites", 0, 0, 4096, "raw", "raw", "off", true}),
    [](const auto& test) { return test.param.name; });

TEST_F(CopyRange, RequestsMustBePermittedAndInside) {
  source_.set_content(noise(7, 64 * KiB));
  target_.set_content(std::string(32 * KiB, 'x'));
  Child& source = attach(raw(source_), true);
  Child& target = attach(raw(target_), true);
  int code = 0;
  failure(source.copy_range({GuestOffset(0), 4096}, target, GuestOffset(0)), &code);
  EXPECT_EQ(code, EROFS);
  Value::Dict window = raw(target_);
  window.set("size", 32 * KiB);  // so that it does not grow
  Child& writable = attach(std::move(window));
  code = 0;
  failure(source.copy_range({GuestOffset(60 * KiB), 8192}, writable, GuestOffset(0)), &code);
  EXPECT_EQ(code, EIO) << "behind the end of the source";
  code = 0;
  failure(source.copy_range({GuestOffset(0), 8192}, writable, GuestOffset(28 * KiB)), &code);
  EXPECT_EQ(code, EIO) << "behind the end of the target";
  EXPECT_TRUE(target_.content() == std::string(32 * KiB, 'x'));
}

// A raw image that nobody called so must not become another format, whatever is copied there.
TEST_F(CopyRange, TheFirstSectorOfAProbedImageIsNotCopied) {
  source_.set_content(noise(8, 16 * KiB));
  target_.set_content(std::string(16 * KiB, 'x'));
  Child& source = attach(raw(source_), true);
  OpenRequest request;
  request.filename = target_.path();
  roots_.push_back(run(graph_.open_root(std::move(request))));
  Child& target = *roots_.back();
  EXPECT_EQ(copy(source, 0, 4096, target, 0), 0u);
  EXPECT_EQ(copy(source, 0, 4096, target, 4096), 4096u);
}

}  // namespace
}  // namespace vise::test
