// How what is stored meets in few writes.
#include "format/qcow2/packer.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <map>
#include <random>

#include "memory_driver.h"
#include "util/sanitizer.h"

namespace vise::qcow2 {
namespace {

class PackerTest : public test::GraphTest {
 protected:
  void SetUp() override {
    disk_.bytes.resize(8 << 20);
    disk_.on_request = [this](const char* request, GuestRange range) {
      if (std::string_view(request) != "write") return;
      writes_[range.start.bytes()] = range.length;
      if (range.contains(GuestOffset(bad_byte_))) throw Error(EIO, "bad");
    };
    file_ = open(disk_);
  }
  void TearDown() override { run(file_->detach()); }

  std::vector<std::byte> noise(std::size_t size) {
    std::vector<std::byte> bytes(size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random_());
    return bytes;
  }
  void expect_content(std::uint64_t at, std::span<const std::byte> bytes) {
    EXPECT_TRUE(std::ranges::equal(std::span(disk_.bytes).subspan(at, bytes.size()), bytes)) << at;
  }

  test::MemoryDisk disk_;
  std::unique_ptr<Child> file_;
  std::map<std::uint64_t, std::uint64_t> writes_;  // start -> length
  std::uint64_t bad_byte_ = UINT64_MAX;
  std::vector<std::vector<std::byte>> kept_;
  std::mt19937_64 random_{5};
};

TEST_F(PackerTest, WhatIsAdjacentInTheFileIsOneWriteWhateverTheOrder) {
  Packer packer(*file_);
  Packer::Receipt receipt;
  // Packed bytes and whole clusters between each other, as the allocator gives them out.
  const auto first = noise(50'000);
  const auto cluster = noise(65'536);
  const auto second = noise(65'536 - 50'000);
  const auto third = noise(10'000);
  packer.append(HostOffset(0), first, receipt);
  packer.append(HostOffset(65'536), cluster, receipt);
  packer.append(HostOffset(50'000), second, receipt);
  packer.append(HostOffset(131'072), third, receipt);
  packer.append(HostOffset(1 << 20), third, receipt);
  EXPECT_EQ(receipt.size(), 1u);
  EXPECT_TRUE(writes_.empty()) << "nothing goes before it is sent";
  packer.send();
  run(packer.written(receipt));
  EXPECT_EQ(writes_, (std::map<std::uint64_t, std::uint64_t>{{0, 141'072}, {1 << 20, 10'000}}));
  expect_content(0, first);
  expect_content(50'000, second);
  expect_content(65'536, cluster);
  expect_content(131'072, third);
  expect_content(1 << 20, third);
}

TEST_F(PackerTest, SmallPiecesMayGoAtOnce) {
  Packer packer(*file_);
  Packer::Receipt receipt;
  std::vector<std::byte> all;
  for (int i = 0; i < 1000; ++i) {
    std::vector<std::byte> piece = noise(1 + random_() % 8000);
    const std::size_t at = all.size();
    all.insert(all.end(), piece.begin(), piece.end());
    packer.append(HostOffset(at), piece, receipt);
    // Small ones were copied; the others have to stay.
    if (piece.size() < 4096) std::ranges::fill(piece, std::byte{0xee});
    kept_.push_back(std::move(piece));
  }
  packer.send();
  run(packer.written(receipt));
  expect_content(0, all);
  EXPECT_LE(writes_.size(), all.size() / Packer::enough + 1);
  EXPECT_GT(receipt.size(), 1u);
}

// The file takes whole units only, as with O_DIRECT.
class PackerUnits : public PackerTest, public testing::WithParamInterface<std::uint32_t> {
 protected:
  void SetUp() override {
    disk_.limits.request_alignment = GetParam();
    disk_.yields = true;
    PackerTest::SetUp();
  }
};

TEST_P(PackerUnits, AppendingReadsNothing) {
  Packer packer(*file_);
  std::vector<std::byte> all;
  for (int i = 0; i < 200; ++i) {
    std::vector<std::byte> piece = noise(1 + random_() % 40'000);
    Packer::Receipt receipt;
    packer.append(HostOffset(all.size()), piece, receipt, Packer::Behind::nothing);
    all.insert(all.end(), piece.begin(), piece.end());
    packer.send();
    kept_.push_back(std::move(piece));
    if (i % 3 == 0) run(packer.written(receipt));
  }
  run(packer.idle());
  expect_content(0, all);
  EXPECT_EQ(disk_.reads, 0u);
}

TEST_P(PackerUnits, AFullBatchLeavesItsLastUnitToTheNext) {
  Packer packer(*file_);
  Packer::Receipt receipt;
  const auto first = noise(Packer::enough + 100);
  const auto second = noise(5000);
  packer.append(HostOffset(0), first, receipt, Packer::Behind::nothing);
  packer.append(HostOffset(first.size()), second, receipt, Packer::Behind::nothing);
  packer.send();
  run(packer.written(receipt));
  expect_content(0, first);
  expect_content(first.size(), second);
  EXPECT_EQ(disk_.reads, 0u);
  EXPECT_EQ(writes_.size(), 2u);
  EXPECT_EQ(writes_.begin()->second, Packer::enough);
}

// Holes are filled in any order while the end is appended to; many batches are on their way at a
// time, and what shares a unit with others keeps all of it.
TEST_P(PackerUnits, NothingIsLostOfWhatSharesAUnit) {
  constexpr std::size_t size = 1 << 20;
  std::vector<std::byte> all = noise(size);
  for (int round = 0; round < 20; ++round) {
    std::fill_n(disk_.bytes.begin(), size, std::byte{0});
    Packer packer(*file_);
    std::vector<std::pair<std::size_t, std::size_t>> holes;
    Packer::Receipt receipt;
    const auto put = [&](std::size_t at, std::size_t length, Packer::Behind behind) {
      packer.append(HostOffset(at), std::span(all).subspan(at, length), receipt, behind);
    };
    std::size_t end = 0;
    while (end < size || !holes.empty()) {
      const unsigned choice = random_() % 8;
      if (choice < 4 && end < size) {
        const std::size_t length = std::min<std::size_t>(1 + random_() % 3000, size - end);
        // The rest of a cluster is left behind now and then, and becomes a hole.
        if (choice == 0) {
          holes.emplace_back(end, length);
        } else {
          put(end, length, Packer::Behind::nothing);
        }
        end += length;
      } else if (choice < 6 && !holes.empty()) {
        const std::size_t i = random_() % holes.size();
        auto& [at, left] = holes[i];
        const std::size_t length = 1 + random_() % left;
        put(at, length, Packer::Behind::unknown);
        at += length;
        left -= length;
        if (left == 0) holes.erase(holes.begin() + static_cast<std::ptrdiff_t>(i));
      } else if (choice == 6) {
        packer.send();
      } else if (random_() % 4 == 0) {
        packer.send();
        run(packer.written(receipt));
        receipt.clear();
      }
    }
    packer.send();
    run(packer.idle());
    expect_content(0, all);
  }
}

// As when a mirror of the file has ended, or direct I/O is switched on and off.
TEST_P(PackerUnits, AnotherFileMayTakeOtherUnits) {
  for (const std::uint32_t other_unit : {1u, 512u, 4096u}) {
    Packer packer(*file_);
    const auto first = noise(3000);
    const auto second = noise(3000);
    Packer::Receipt receipt;
    packer.append(HostOffset(0), first, receipt, Packer::Behind::nothing);
    packer.send();
    run(packer.written(receipt));

    test::MemoryDisk other_disk;
    other_disk.bytes = disk_.bytes;
    other_disk.limits.request_alignment = other_unit;
    std::unique_ptr<Child> other = open(other_disk);
    std::unique_ptr<Child> before = open(disk_);
    run(file_->replace_node(other->node().shared_from_this()));
    receipt.clear();
    packer.append(HostOffset(3000), second, receipt, Packer::Behind::nothing);
    packer.send();
    run(packer.written(receipt));
    run(packer.idle());
    const std::span<const std::byte> there(other_disk.bytes);
    EXPECT_TRUE(std::ranges::equal(there.first(3000), first)) << other_unit;
    EXPECT_TRUE(std::ranges::equal(there.subspan(3000, 3000), second)) << other_unit;
    run(file_->replace_node(before->node().shared_from_this()));
    run(before->detach());
    run(other->detach());
  }
}

INSTANTIATE_TEST_SUITE_P(Bytes, PackerUnits, testing::Values(512u, 4096u));

TEST_F(PackerTest, AFailureIsToldToAllThatWereInTheBatchAndToNobodyElse) {
  bad_byte_ = 1000;
  Packer packer(*file_);
  Packer::Receipt bad;
  Packer::Receipt with_it;
  Packer::Receipt after;
  const auto bytes = noise(5000);
  packer.append(HostOffset(0), bytes, bad);
  packer.append(HostOffset(1 << 20), bytes, with_it);
  packer.send();
  packer.append(HostOffset(2 << 20), bytes, after);
  packer.send();
  EXPECT_THROW(run(packer.written(bad)), Error);
  EXPECT_THROW(run(packer.written(with_it)), Error);
  run(packer.settled(bad));
  run(packer.written(after));
  expect_content(2 << 20, bytes);
  run(packer.idle());
}

// No more than what the process has mapped already, and some.
class NoMoreMemory {
 public:
  explicit NoMoreMemory(std::uint64_t but) {
    std::uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    getrlimit(RLIMIT_AS, &before_);
    const rlimit now = {pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)) + but,
                        before_.rlim_max};
    setrlimit(RLIMIT_AS, &now);
  }
  ~NoMoreMemory() { setrlimit(RLIMIT_AS, &before_); }
  NoMoreMemory(const NoMoreMemory&) = delete;

 private:
  rlimit before_{};
};

TEST_F(PackerTest, LackOfMemoryIsToldLikeAnyFailure) {
  if (under_address_sanitizer) GTEST_SKIP() << "it ends the process";
  disk_.limits.write_alignment = 1u << 31;
  std::unique_ptr<Child> file = open(disk_);
  Packer packer(*file);
  Packer::Receipt receipt;
  packer.append(HostOffset(0), noise(100), receipt, Packer::Behind::nothing);
  int code = 0;
  {
    const NoMoreMemory limit(64 << 20);
    packer.send();
    failure(packer.written(receipt), &code);
  }
  EXPECT_EQ(code, ENOMEM);
  run(packer.idle());
  run(file->detach());
}

}  // namespace
}  // namespace vise::qcow2
