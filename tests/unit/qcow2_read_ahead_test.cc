// Which clusters are decoded before somebody asks for them.
#include "format/qcow2/read_ahead.h"

#include <gtest/gtest.h>

#include "format/qcow2/qcow2.h"
#include "qcow2_file_fixture.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t kib = 1024;

ReadAhead::Clusters read(ReadAhead& ahead, std::uint64_t offset, std::uint64_t length = 4 * kib) {
  return ahead.next({GuestOffset(offset), length});
}

TEST(ReadAhead, ASequentialReaderGetsEachClusterOnce) {
  ReadAhead ahead(16, 2);
  EXPECT_EQ(read(ahead, 0), ReadAhead::Clusters{});
  EXPECT_EQ(read(ahead, 4 * kib), ReadAhead::Clusters{});
  EXPECT_EQ(read(ahead, 8 * kib), (ReadAhead::Clusters{1, 2}));
  for (std::uint64_t at = 12 * kib; at < 64 * kib; at += 4 * kib) {
    EXPECT_EQ(read(ahead, at).count, 0u) << at;
  }
  EXPECT_EQ(read(ahead, 64 * kib), (ReadAhead::Clusters{3, 1}));
}

TEST(ReadAhead, RandomReadersGetNothing) {
  ReadAhead ahead(16, 4);
  for (std::uint64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(read(ahead, i * 37 % 101 * 64 * kib).count, 0u);
  }
}

TEST(ReadAhead, SeveralReadersAreToldApart) {
  ReadAhead ahead(16, 1);
  for (std::uint64_t step = 0; step < 3; ++step) {
    for (std::uint64_t reader = 0; reader < 8; ++reader) {
      const auto wanted = read(ahead, reader * 1024 * kib + step * 4 * kib);
      EXPECT_EQ(wanted.count, step == 2 ? 1u : 0u) << reader;
    }
  }
}

TEST(ReadAhead, WhatWasAskedForIsNotAskedForAgain) {
  ReadAhead ahead(12, 3);
  read(ahead, 0, 512);
  read(ahead, 512, 512);
  EXPECT_EQ(read(ahead, 1024, 3072), (ReadAhead::Clusters{1, 3}));
  EXPECT_EQ(read(ahead, 4096, 512), (ReadAhead::Clusters{4, 1}));
}

class ReadAheadImage : public QcowFileTest {
 protected:
  static constexpr std::uint64_t cluster = 65536;
  static constexpr std::uint64_t clusters = 12;

  void SetUp() override {
    write_file(file(), new_image({}, clusters * cluster));
    disk_.resize(clusters * cluster);
    for (std::size_t i = 0; i < disk_.size(); ++i) disk_[i] = static_cast<std::byte>(i / 97);
    std::unique_ptr<Child> root = open();
    WriteFlags flags;
    flags.compressed = true;
    run(root->write(GuestOffset(0), ConstIoVec(std::span(disk_)), flags));
    run(root->detach());
  }
  std::unique_ptr<Child> open() {
    OpenRequest request;
    request.filename = file();
    request.format = "qcow2";
    return run(graph_.open_root(std::move(request)));
  }
  void expect_read(Child& root, std::uint64_t from, std::uint64_t length) {
    std::vector<std::byte> data(length);
    run(root.read(GuestOffset(from), IoVec(std::span(data))));
    EXPECT_TRUE(
        std::equal(data.begin(), data.end(), disk_.begin() + static_cast<std::ptrdiff_t>(from)))
        << from;
  }
  std::vector<std::byte> disk_;
};

TEST_F(ReadAheadImage, SmallStepsReadWhatIsThere) {
  std::unique_ptr<Child> root = open();
  for (std::uint64_t at = 0; at < disk_.size(); at += 4096) expect_read(*root, at, 4096);
  run(root->detach());
}

TEST_F(ReadAheadImage, WritesAheadOfTheReaderAreSeen) {
  std::unique_ptr<Child> root = open();
  std::vector<std::byte> fresh(cluster, std::byte{0x5a});
  for (std::uint64_t at = 0; at < disk_.size(); at += 4096) {
    if (at % cluster == 16384 && at + 2 * cluster <= disk_.size()) {
      // The next cluster is decoded by now, or just being decoded.
      const std::uint64_t next = at / cluster * cluster + cluster;
      WriteFlags flags;
      flags.compressed = at / cluster % 2 == 0;
      run(root->write(GuestOffset(next), ConstIoVec(std::span(fresh)), flags));
      run(root->flush());
      std::ranges::copy(fresh, disk_.begin() + static_cast<std::ptrdiff_t>(next));
    }
    expect_read(*root, at, 4096);
  }
  run(root->detach());
}

TEST_F(ReadAheadImage, DamageAheadIsToldToNobodyWhoDoesNotReadIt) {
  std::unique_ptr<Child> root = open();
  const Extent extent =
      run(root->node().driver().map({GuestOffset(2 * cluster), 1}, MapMode::allocation_only));
  run(root->detach());
  with_file([&](Child& child) {
    const std::vector<std::byte> noise(64, std::byte{0xff});
    run(child.write(GuestOffset(extent.host->bytes() + 8), ConstIoVec(std::span(noise))));
  });
  root = open();
  for (std::uint64_t at = 0; at < 2 * cluster; at += 4096) expect_read(*root, at, 4096);
  expect_error(EIO, "damaged", [&] { expect_read(*root, 2 * cluster, 4096); });
  expect_read(*root, 3 * cluster, 4096);
  run(root->detach());
}

}  // namespace
}  // namespace vise::qcow2
