// New qcow2 images: options and what excludes what, the bytes of the reference, and the same bytes
// as the real qemu-img makes.
#include <gtest/gtest.h>

#include <cerrno>
#include <string>

#include "qcow2_test_support.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

using Options = std::vector<std::pair<const char*, const char*>>;

Value::Dict as_dict(const Options& options) {
  Value::Dict dict;
  for (const auto& [name, value] : options) dict.set(name, value);
  return dict;
}

struct BadOptions {
  const char* name;
  Options options;
  int error;
  const char* message;
};
void PrintTo(const BadOptions& c, std::ostream* out) { *out << c.name; }

class CreateRefuses : public testing::TestWithParam<BadOptions> {};

TEST_P(CreateRefuses, NamingTheOption) {
  const BadOptions& c = GetParam();
  expect_error(c.error, c.message, [&] { CreateOptions::parse(as_dict(c.options)); });
}

const BadOptions bad_options[] = {
    {"Unknown", {{"cluster_sise", "64k"}}, EINVAL, "cluster_size"},
    {"ClusterNoPowerOfTwo", {{"cluster_size", "65537"}}, EINVAL, "cluster_size"},
    {"ClusterTooSmall", {{"cluster_size", "256"}}, EINVAL, "cluster_size"},
    {"ClusterTooLarge", {{"cluster_size", "4M"}}, EINVAL, "2097152"},
    {"ClusterZero", {{"cluster_size", "0"}}, EINVAL, "cluster_size"},
    {"ClusterNoSize", {{"cluster_size", "big"}}, EINVAL, "cluster_size"},
    {"Compat", {{"compat", "1.2"}}, EINVAL, "compat"},
    {"RefcountBits3", {{"refcount_bits", "3"}}, EINVAL, "refcount_bits"},
    {"RefcountBits128", {{"refcount_bits", "128"}}, EINVAL, "refcount_bits"},
    {"RefcountBits0", {{"refcount_bits", "0"}}, EINVAL, "refcount_bits"},
    {"RefcountBitsNegative", {{"refcount_bits", "-1"}}, EINVAL, "refcount_bits"},
    {"Codec", {{"compression_type", "lzo"}}, EINVAL, "compression_type"},
    {"Preallocation", {{"preallocation", "some"}}, EINVAL, "preallocation"},
    {"LazyNoBoolean", {{"lazy_refcounts", "2"}}, EINVAL, "lazy_refcounts"},
    {"V2RefcountBits", {{"compat", "0.10"}, {"refcount_bits", "8"}}, EINVAL, "refcount_bits"},
    {"V2Lazy", {{"compat", "v2"}, {"lazy_refcounts", "on"}}, EINVAL, "lazy_refcounts"},
    {"V2ExtendedL2", {{"compat", "v2"}, {"extended_l2", "on"}}, EINVAL, "extended_l2"},
    {"V2Zstd", {{"compat", "v2"}, {"compression_type", "zstd"}}, EINVAL, "compression_type"},
    {"V2DataFile", {{"compat", "v2"}, {"data_file", "d"}}, EINVAL, "data_file"},
    {"ExtendedL2InSmallClusters",
     {{"extended_l2", "on"}, {"cluster_size", "8k"}},
     EINVAL,
     "extended_l2"},
    {"PreallocatedOverlay",
     {{"preallocation", "metadata"}, {"backing_file", "b"}, {"backing_fmt", "raw"}},
     EINVAL,
     "preallocation"},
    {"RawWithoutDataFile", {{"data_file_raw", "on"}}, EINVAL, "data_file_raw"},
    {"RawWithBacking",
     {{"data_file", "d"}, {"data_file_raw", "on"}, {"backing_file", "b"}},
     EINVAL,
     "data_file_raw"},
    {"FormatWithoutBacking", {{"backing_fmt", "raw"}}, EINVAL, "backing_fmt"},
    {"Encryption", {{"encryption", "on"}}, ENOTSUP, "encrypt"},
    {"EncryptFormat", {{"encrypt.format", "luks"}}, ENOTSUP, "encrypt"},
    {"EmptyDataFile", {{"data_file", ""}}, EINVAL, "data_file is empty"},
};
INSTANTIATE_TEST_SUITE_P(Qcow2, CreateRefuses, testing::ValuesIn(bad_options),
                         [](const auto& c) { return c.param.name; });

TEST(CreateOptions, BackingNamesHaveALimit) {
  Value::Dict options = as_dict({{"backing_fmt", "raw"}});
  options.set("backing_file", std::string(1024, 'b'));
  expect_error(EINVAL, "backing_file", [&] { CreateOptions::parse(options); });
}

TEST(CreateOptions, SizesBeyondTheL1LimitAreRefused) {
  const CreateOptions small = CreateOptions::parse(as_dict({{"cluster_size", "512"}}));
  EXPECT_EQ(small.header(std::uint64_t{128} << 30).l1_entries, 4194304u);
  expect_error(EFBIG, "137438953472", [&] { small.header((std::uint64_t{128} << 30) + 1); });
  const CreateOptions large = CreateOptions::parse(as_dict({{"cluster_size", "2M"}}));
  EXPECT_EQ(large.header(std::uint64_t{1} << 61).l1_entries, 4194304u);
  expect_error(EFBIG, "size", [&] { large.header((std::uint64_t{1} << 61) + 1); });
  expect_error(EFBIG, "size", [&] { large.header(UINT64_MAX); });
}

TEST(CreateLayout, DefaultImageIsTheReferences) {
  const std::vector<std::byte> image = new_image({}, std::uint64_t{1} << 30);
  ASSERT_EQ(image.size(), 196624u);
  EXPECT_EQ(load_be<std::uint64_t>(&image[0x10000]), 0x20000u);
  EXPECT_EQ(load_be<std::uint64_t>(&image[0x20000]), 0x0001000100010001u);
  EXPECT_EQ(load_be<std::uint64_t>(&image[0x20008]), 0u);
  EXPECT_EQ(new_image(as_dict({{"cluster_size", "512"}}), 100 << 20).size(), 27136u);
  EXPECT_EQ(new_image(as_dict({{"cluster_size", "2M"}}), 100 << 20).size(), 6291464u);
}

// Every kind of part in one image: the counts cover exactly what is in use, once.
TEST(CreateLayout, PartsFollowOneAnotherWithoutGapOrOverlap) {
  for (const char* cluster_size : {"512", "4k", "64k"}) {
    for (const char* bits : {"1", "16", "64"}) {
      for (const auto kind : {CreateLayout::Kind::plain, CreateLayout::Kind::preallocated}) {
        for (const std::uint64_t size : {0ull, 512ull, 70ull << 20, 2ull << 30}) {
          Header h = CreateOptions::parse(
                         as_dict({{"cluster_size", cluster_size}, {"refcount_bits", bits}}))
                         .header(size);
          const CreateLayout l = CreateLayout::make(h, kind);
          SCOPED_TRACE(testing::Message() << cluster_size << " " << bits << " " << size);
          EXPECT_EQ(1 + l.table_clusters + l.blocks + l.l1_clusters + l.l2_tables + l.data_clusters,
                    l.clusters);
          EXPECT_GE(l.blocks * h.refcount_block_entries(), l.clusters);
          EXPECT_GE(l.table_clusters * h.cluster_size() / 8, l.blocks);
          EXPECT_LT(l.block(l.blocks - 1), l.metadata_end());
          EXPECT_LE(l.file_length(h), l.clusters << h.cluster_bits);
          h.check_writable();
          Header::decode(h.encode());
        }
      }
    }
  }
}

class CreatedByBoth : public testing::Test {
 protected:
  void SetUp() override {
    if (!have_qemu_img()) GTEST_SKIP() << "qemu-img is not installed";
  }
  std::string qemu_create(const Options& options, std::uint64_t size) {
    std::string command = "qemu-img create -q -f qcow2 -u";
    for (const auto& [name, value] : options) command += std::string(" -o ") + name + "=" + value;
    const std::string file = folder_.file("qemu.qcow2");
    EXPECT_EQ(run_command(command + " " + file + " " + std::to_string(size)).status, 0) << command;
    return file;
  }
  TemporaryFolder folder_;
};

TEST_F(CreatedByBoth, AreTheSameBytes) {
  const std::vector<Options> variants = {
      {},
      {{"compat", "0.10"}},
      {{"compat", "v3"}, {"lazy_refcounts", "on"}},
      {{"refcount_bits", "1"}},
      {{"refcount_bits", "8"}, {"compression_type", "zstd"}},
      {{"refcount_bits", "64"}},
      {{"backing_file", "some/base.img"}, {"backing_fmt", "raw"}},
      {{"compat", "0.10"}, {"backing_file", "b.qcow2"}, {"backing_fmt", "qcow2"}},
  };
  for (const char* cluster_size : {"512", "4k", "8k", "64k", "2M"}) {
    for (const std::uint64_t size : {0ull, 1000ull, 100ull << 20, 1ull << 30, 3ull << 30}) {
      for (std::size_t i = 0; i < variants.size(); ++i) {
        if (size != (100u << 20) && i > 1) continue;
        Options options = variants[i];
        options.push_back({"cluster_size", cluster_size});
        SCOPED_TRACE(testing::Message() << cluster_size << " variant " << i << " size " << size);
        const auto qemu = read_file(qemu_create(options, size));
        const auto ours = new_image(as_dict(options), size);
        ASSERT_EQ(qemu.size(), ours.size());
        EXPECT_TRUE(qemu == ours);
      }
    }
  }
}

TEST_F(CreatedByBoth, ExtendedL2IsTheSameBytes) {
  const Options options = {{"extended_l2", "on"}, {"cluster_size", "16k"}};
  EXPECT_TRUE(read_file(qemu_create(options, 1 << 30)) == new_image(as_dict(options), 1 << 30));
}

TEST_F(CreatedByBoth, QemuFindsNoErrorInOurOtherLayouts) {
  const std::vector<std::pair<Options, std::uint64_t>> cases = {
      {{{"cluster_size", "512"}}, std::uint64_t{128} << 30},  // a refcount table of many clusters
      {{{"cluster_size", "512"}, {"refcount_bits", "64"}}, std::uint64_t{10} << 30},
      {{{"preallocation", "metadata"}}, 10 << 20},
      {{{"preallocation", "metadata"}, {"cluster_size", "512"}}, 1 << 20},
      {{{"preallocation", "metadata"}, {"refcount_bits", "1"}}, 1000000},
      {{{"preallocation", "metadata"}, {"extended_l2", "on"}}, 3 << 20},
      {{{"preallocation", "metadata"}, {"compat", "0.10"}, {"cluster_size", "4k"}}, 33 << 20},
  };
  for (const auto& [options, size] : cases) {
    const std::string file = folder_.file("ours.qcow2");
    write_file(file, new_image(as_dict(options), size));
    const CommandResult check = run_command("qemu-img check " + file);
    EXPECT_EQ(check.status, 0) << check.output;
  }
}

}  // namespace
}  // namespace vise::qcow2
