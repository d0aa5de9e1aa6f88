// Where metadata lie, and what happens to a node whose image turns out to be corrupt.
#include "format/qcow2/overlap.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "copy/compress_in_place.h"
#include "qcow2_file_fixture.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t cluster = 65536;
constexpr MetadataSet everything =
    MetadataSet(Metadata::main_header) | Metadata::active_l1 | Metadata::active_l2 |
    Metadata::refcount_table | Metadata::refcount_block | Metadata::snapshot_table |
    Metadata::inactive_l1 | Metadata::inactive_l2 | Metadata::bitmap_directory;

HostRange at(std::uint64_t number, std::uint64_t length = cluster) {
  return {HostOffset(number * cluster), length};
}

Header header_with_tables() {
  Header h;
  h.refcount_table_offset = at(1).start;
  h.refcount_table_clusters = 2;
  h.l1_offset = at(4).start;
  h.l1_entries = 8;
  h.bitmaps = BitmapsExtension{1, {at(5).start, 100}};
  return h;
}

TEST(OverlapGuard, FindsEveryKindWhereItLies) {
  const Header header = header_with_tables();
  OverlapGuard guard(header, everything);
  guard.add(Metadata::active_l2, at(10).start);
  guard.add(Metadata::refcount_block, at(11).start);
  guard.add(Metadata::inactive_l2, at(12).start);
  guard.set_snapshot_table({at(13).start, 80});
  guard.set_inactive_l1({at(14), at(15, 8)});
  EXPECT_EQ(guard.find(at(0, 1)), Metadata::main_header);
  EXPECT_EQ(guard.find(at(2, 1)), Metadata::refcount_table);
  EXPECT_EQ(guard.find({at(4).start + 63, 1}), Metadata::active_l1);
  EXPECT_EQ(guard.find({at(4).start + 64, 1}), std::nullopt);
  EXPECT_EQ(guard.find({at(5).start + 99, 1}), Metadata::bitmap_directory);
  EXPECT_EQ(guard.find({at(10).end() - 1, 1}), Metadata::active_l2);
  EXPECT_EQ(guard.find(at(11)), Metadata::refcount_block);
  EXPECT_EQ(guard.find(at(12)), Metadata::inactive_l2);
  EXPECT_EQ(guard.find({at(13).start + 79, 1}), Metadata::snapshot_table);
  EXPECT_EQ(guard.find({at(15).start + 7, 1}), Metadata::inactive_l1);
  EXPECT_EQ(guard.find({at(15).start + 8, cluster}), std::nullopt);
  EXPECT_EQ(guard.find(at(6, 4 * cluster)), std::nullopt);
  EXPECT_EQ(guard.find(at(6, 5 * cluster)), Metadata::active_l2);
  EXPECT_EQ(guard.find(at(10, 0)), std::nullopt);
}

TEST(OverlapGuard, LooksNeitherAtWhatIsSwitchedOffNorAtTheWritersOwn) {
  const Header header = header_with_tables();
  OverlapGuard guard(header, everything.without(Metadata::active_l1));
  EXPECT_EQ(guard.find(at(4)), std::nullopt);
  EXPECT_EQ(guard.find(at(1)), Metadata::refcount_table);
  EXPECT_EQ(guard.find(at(1), Metadata::refcount_table), std::nullopt);
  OverlapGuard none(header, {});
  none.add(Metadata::active_l2, at(10).start);
  EXPECT_EQ(none.find(at(0, 20 * cluster)), std::nullopt);
}

TEST(OverlapGuard, ATableNamedTwiceGoesWithItsLastName) {
  const Header header = header_with_tables();
  OverlapGuard guard(header, everything);
  guard.add(Metadata::active_l2, at(10).start);
  guard.add(Metadata::active_l2, at(10).start);
  guard.add(Metadata::active_l2, HostOffset(0));
  guard.remove(Metadata::active_l2, at(10).start);
  EXPECT_EQ(guard.find(at(10)), Metadata::active_l2);
  guard.remove(Metadata::active_l2, at(10).start);
  guard.remove(Metadata::active_l2, at(10).start);
  EXPECT_EQ(guard.find(at(6, 10 * cluster)), std::nullopt);
}

// An image whose L2 table counts as free: the next allocation would be given its cluster.
class CorruptImage : public QcowFileTest {
 protected:
  Task<void> write(Child& root, std::uint64_t offset) {
    const std::vector<std::byte> data(cluster, std::byte{7});
    co_await root.write(GuestOffset(offset), ConstIoVec(std::span(data)));
  }
  std::unique_ptr<Child> open() {
    OpenRequest request;
    request.filename = file();
    request.format = "qcow2";
    request.defaults.discard_unmap = true;
    return run(graph_.open_root(std::move(request)));
  }
  int error_of(Task<void> task) {
    try {
      run(std::move(task));
    } catch (const Error& error) {
      return error.code();
    }
    return 0;
  }
};

TEST_F(CorruptImage, IsToldOnceAndTakesNoMoreRequests) {
  write_file(file(), new_image({}, 1 << 20));
  auto root = open();
  run(write(*root, 0));
  run(root->detach());
  std::vector<std::byte> image = read_file(file());
  const auto l1 = load_be<std::uint64_t>(&image[40]);
  const std::uint64_t l2 = load_be<std::uint64_t>(&image[l1]) & ((std::uint64_t{1} << 56) - 512);
  store_be(&image[2 * cluster + l2 / cluster * 2], std::uint16_t{0});
  write_file(file(), image);

  std::vector<std::pair<std::string, HostRange>> told;
  graph_.on_image_corrupted = [&](const ImageCorruption& corruption) {
    EXPECT_TRUE(corruption.fatal);
    EXPECT_EQ(corruption.node.type().name, "qcow2");
    told.emplace_back(corruption.message, corruption.range.value_or(HostRange{}));
  };
  root = open();
  EXPECT_EQ(error_of(write(*root, 2 * cluster)), EIO);
  EXPECT_EQ(error_of(write(*root, 0)), ENOMEDIUM);
  EXPECT_EQ(error_of(root->flush()), ENOMEDIUM);
  EXPECT_EQ(error_of(root->discard(GuestRange{GuestOffset(0), cluster})), ENOMEDIUM);
  run(root->detach());
  ASSERT_EQ(told.size(), 1u);
  EXPECT_NE(told[0].first.find("active L2 table"), std::string::npos) << told[0].first;
  EXPECT_EQ(told[0].second, (HostRange{HostOffset(l2), cluster}));
  std::vector<std::byte> after = read_file(file());
  EXPECT_EQ(after[79], std::byte{2});
  after[79] = std::byte{0};
  EXPECT_EQ(after, image);
}

// An image whose tables were moved in front of the space that was freed, still open.
class MovedTables : public CorruptImage, public testing::WithParamInterface<const char*> {
 protected:
  static constexpr std::uint64_t small = 512;  // cluster size
  static constexpr std::uint64_t disk = 6u << 20;

  Task<void> fill(Child& root, std::uint64_t offset, std::uint64_t length) {
    std::vector<std::byte> data(length);
    for (std::size_t i = 0; i < length; ++i) {  // hard to compress
      data[i] = static_cast<std::byte>((i * 2654435761u) >> 13);
    }
    co_await root.write(GuestOffset(offset), ConstIoVec(std::span(data)));
  }
  Task<void> read_all(Child& root, std::uint64_t from) {
    std::vector<std::byte> data(disk - from);
    co_await root.read(GuestOffset(from), IoVec(std::span(data)));
  }
  static std::uint64_t word(const std::vector<std::byte>& image, std::uint64_t offset) {
    return load_be<std::uint64_t>(&image[offset]);
  }
  /// Of one table of the kind that the parameter names, the last one there is.
  static std::uint64_t place(const std::vector<std::byte>& image, std::string_view kind) {
    constexpr std::uint64_t mask = (std::uint64_t{1} << 56) - 512;
    const std::uint64_t l1 = word(image, 40);
    const std::uint64_t counts = word(image, 48);
    if (kind == "active L1 table") return l1;
    if (kind == "refcount table") return counts;
    if (kind == "active L2 table") return word(image, l1 + 8 * (disk / 32768 - 1)) & mask;
    std::uint64_t block = 0;
    for (std::uint64_t at = counts; at < counts + 512; at += 8) {
      if (word(image, at) != 0) block = word(image, at);
    }
    return block;
  }
};

TEST_P(MovedTables, AreLookedAfterInTheirNewPlace) {
  Value::Dict options;
  options.set("cluster_size", "512");
  options.set("refcount_bits", "64");
  write_file(file(), new_image(options, 1 << 20));
  OpenRequest request;
  request.filename = file();
  request.format = "qcow2";
  request.options.set("l2-cache-size", std::uint64_t{64} << 10);  // 128 tables
  request.defaults.discard_unmap = true;
  auto root = run(graph_.open_root(std::move(request)));
  run(fill(*root, 0, 1 << 20));
  run(root->truncate(disk, {}));       // the L1 table grows, and so goes behind the data
  run(fill(*root, 1 << 20, 5 << 18));  // more than the refcount table has room for
  run(root->write_zeroes({GuestOffset(9 << 18), disk - (9 << 18)}, {}));  // more tables
  run(root->discard({GuestOffset(small), disk - small}));
  run(root->flush());
  const std::uint64_t before = place(read_file(file()), GetParam());
  run(compress_in_place({.image = root.get(), .options = {.compact = true}}));

  std::vector<std::byte> image = read_file(file());
  const std::uint64_t after = place(image, GetParam());
  ASSERT_LT(after, before) << "the " << GetParam() << " has not moved";
  // Guest cluster 0 leads there, once its L2 table has left the cache.
  const std::uint64_t l2 = word(image, word(image, 40)) & ((std::uint64_t{1} << 56) - 512);
  const int fd = ::open(file().c_str(), O_WRONLY);
  std::array<std::byte, 8> entry;
  store_be(entry.data(), after | std::uint64_t{1} << 63);
  EXPECT_EQ(pwrite(fd, entry.data(), 8, static_cast<off_t>(l2)), 8);
  close(fd);
  run(read_all(*root, 64 << 10));
  std::string told;
  graph_.on_image_corrupted = [&](const ImageCorruption& corruption) { told = corruption.message; };
  EXPECT_EQ(error_of(fill(*root, 0, 512)), EIO);
  EXPECT_NE(told.find(GetParam()), std::string::npos) << told;
  run(root->detach());
  const std::vector<std::byte> end = read_file(file());
  EXPECT_TRUE(std::equal(&end[after], &end[after] + 512, &image[after]));
}

INSTANTIATE_TEST_SUITE_P(Kinds, MovedTables,
                         testing::Values("active L1 table", "active L2 table", "refcount table",
                                         "refcount block"),
                         [](const auto& kind) {
                           std::string name(kind.param);
                           std::erase(name, ' ');
                           return name;
                         });

}  // namespace
}  // namespace vise::qcow2
