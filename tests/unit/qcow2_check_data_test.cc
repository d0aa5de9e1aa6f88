// check with data: which compressed clusters are damaged, and that no flipped bit stays unnoticed.
#include <gtest/gtest.h>

#include <random>

#include "qcow2_file_fixture.h"

namespace vise::qcow2 {
namespace {

struct Found {
  CheckResult result;
  std::vector<DamagedCluster> damaged;
  std::vector<double> progress;
};

class CheckData : public QcowFileTest, public testing::WithParamInterface<const char*> {
 protected:
  /// An image with the content `disk`, all of it written compressed.
  void make_image(const char* codec, const char* cluster_size, std::span<const std::byte> disk) {
    Value::Dict options;
    options.set("compression_type", codec);
    options.set("cluster_size", cluster_size);
    write_file(file(), new_image(options, disk.size()));
    std::unique_ptr<Child> root = open(file(), false);
    WriteFlags flags;
    flags.compressed = true;
    run(root->write(GuestOffset(0), ConstIoVec(disk), flags));
    run(root->detach());
  }

  std::unique_ptr<Child> open(const std::string& image, bool read_only) {
    OpenRequest request;
    request.filename = image;
    request.format = "qcow2";
    request.defaults.read_only = read_only;
    return run(graph_.open_root(std::move(request)));
  }

  Found check_data(Child& child) {
    std::vector<std::byte> start(std::min<std::uint64_t>(child.size(), 65536));
    run(child.read(GuestOffset(0), IoVec(std::span(start))));
    Header header = Header::decode(start, Header::Purpose::check);
    Found found;
    CheckRequest request;
    request.data = true;
    request.on_damaged = [&](const DamagedCluster& cluster) { found.damaged.push_back(cluster); };
    request.on_progress = [&](double fraction) { found.progress.push_back(fraction); };
    found.result = run(check_image(child, header, std::move(request)));
    return found;
  }

  Extent extent_at(std::uint64_t guest) {
    std::unique_ptr<Child> root = open(file(), true);
    const Extent extent =
        run(root->node().driver().map({GuestOffset(guest), 1}, MapMode::allocation_only));
    run(root->detach());
    return extent;
  }

  std::vector<std::byte> content_of(const std::string& image) {
    std::unique_ptr<Child> root = open(image, true);
    std::vector<std::byte> content(root->size());
    run(root->read(GuestOffset(0), IoVec(std::span(content))));
    run(root->detach());
    return content;
  }

  /// Text of few words, which every codec shrinks well.
  static std::vector<std::byte> text(std::size_t size) {
    std::mt19937 random(5);
    std::vector<std::byte> bytes(size);
    for (std::size_t i = 0; i < size; ++i) {
      bytes[i] = static_cast<std::byte>("etaoin shrdlu"[random() % (i % 7 + 2)]);
    }
    return bytes;
  }
};

TEST_P(CheckData, CountsWhatIsSound) {
  const std::vector<std::byte> disk = text(40 * 4096 + 512);
  make_image(GetParam(), "4k", disk);
  const Found found = with_file([&](Child& child) { return check_data(child); });
  ASSERT_TRUE(found.result.data);
  EXPECT_EQ(found.result.data->clusters, 41u);
  EXPECT_EQ(found.result.data->with_checksum, 41u);
  EXPECT_EQ(found.result.data->damaged, 0u);
  EXPECT_EQ(found.result.corruptions + found.result.leaks + found.result.check_errors, 0u);
  ASSERT_FALSE(found.progress.empty());
  EXPECT_TRUE(std::ranges::is_sorted(found.progress));
  EXPECT_EQ(found.progress.back(), 1.0);
}

TEST_P(CheckData, NamesTheDamagedClustersAlone) {
  const std::vector<std::byte> disk = text(40 * 4096);
  make_image(GetParam(), "4k", disk);
  const Extent third = extent_at(3 * 4096);
  const Extent last = extent_at(39 * 4096);
  const Found found = with_file([&](Child& child) {
    const std::vector<std::byte> noise(16, std::byte{0xa7});
    for (const Extent& extent : {third, last}) {
      run(child.write(GuestOffset(extent.host->bytes() + 40), ConstIoVec(std::span(noise))));
    }
    return check_data(child);
  });
  EXPECT_EQ(found.result.data->clusters, 40u);
  EXPECT_EQ(found.result.data->damaged, 2u);
  EXPECT_EQ(found.result.corruptions, 0u) << "the metadata is sound";
  ASSERT_EQ(found.damaged.size(), 2u);
  EXPECT_EQ(found.damaged[0].guest_offset, 3 * 4096u);
  EXPECT_EQ(found.damaged[0].host_offset, third.host->bytes());
  EXPECT_EQ(found.damaged[0].stored_length, third.stored_length);
  EXPECT_FALSE(found.damaged[0].in_snapshot);
  EXPECT_EQ(found.damaged[1].guest_offset, 39 * 4096u);
}

TEST_P(CheckData, NoFlippedBitIsSilent) {
  const std::vector<std::byte> disk = text(3 * 512);
  make_image(GetParam(), "512", disk);
  const HostOffset first = *extent_at(0).host;
  const Extent last = extent_at(2 * 512);
  const std::string copy = folder_.file("copy.qcow2");
  unsigned harmless = 0;
  const std::uint64_t bits = (*last.host - first + 100) * 8;
  const std::vector<std::byte> before = read_file(file());
  with_file([&](Child& child) {
    for (std::uint64_t bit = 0; bit < bits; bit += bit % 3 + 1) {
      const std::uint64_t at = first.bytes() + bit / 8;
      std::vector<std::byte> byte(1, before[at] ^ (std::byte{1} << (bit % 8)));
      run(child.write(GuestOffset(at), ConstIoVec(std::span(byte))));
      if (check_data(child).result.data->damaged == 0) {
        ++harmless;
        write_file(copy, read_file(file()));
        ASSERT_EQ(content_of(copy), disk) << "bit " << bit << " is silent";
      }
      byte[0] = before[at];
      run(child.write(GuestOffset(at), ConstIoVec(std::span(byte))));
    }
  });
  EXPECT_LT(harmless, 60u) << "those in the padding bits behind a stream";
}

INSTANTIATE_TEST_SUITE_P(Codecs, CheckData, testing::Values("zlib", "zstd"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace vise::qcow2
