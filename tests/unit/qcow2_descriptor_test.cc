// L2 entries: the worked examples of the format reference, every cluster size, corrupt entries.
#include "format/qcow2/descriptor.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "vise/error.h"

namespace vise::qcow2 {
namespace {

Geometry geometry_of(unsigned cluster_bits, bool extended = false, unsigned version = 3) {
  Header header;
  header.version = version;
  header.cluster_bits = cluster_bits;
  if (extended) header.incompatible_features |= incompatible::extended_l2;
  return Geometry(header);
}

struct CompressedCase {
  unsigned cluster_bits;
  std::uint64_t entry;
  std::uint64_t offset;
  std::uint64_t available;  // bytes
};

class CompressedEntry : public testing::TestWithParam<CompressedCase> {};

TEST_P(CompressedEntry, DecodesToOffsetAndLengthAndBack) {
  const CompressedCase& c = GetParam();
  const Geometry geometry = geometry_of(c.cluster_bits);
  const Descriptor d = Descriptor::decode(c.entry, 0, geometry);
  EXPECT_TRUE(d.compressed);
  EXPECT_FALSE(d.copied);
  EXPECT_EQ(d.host.bytes(), c.offset);
  EXPECT_EQ(d.stored_length, c.available);
  EXPECT_EQ(d.encode(geometry).word, c.entry);
}

// Real entries, as the reference lists them.
INSTANTIATE_TEST_SUITE_P(WorkedExamples, CompressedEntry,
                         testing::Values(CompressedCase{9, 0x4000000000000a00, 0xa00, 512},
                                         CompressedCase{9, 0x4000000000000bef, 0xbef, 17},
                                         CompressedCase{9, 0x6000000000000bfe, 0xbfe, 514},
                                         CompressedCase{12, 0x5400000000005926, 0x5926, 2778},
                                         CompressedCase{16, 0x51c0000000050000, 0x50000, 36864},
                                         CompressedCase{16, 0x5200000000058f13, 0x58f13, 37101},
                                         CompressedCase{16, 0x5000000000058026, 0x58026, 33242},
                                         CompressedCase{21, 0x51d4000000b1d36e, 0xb1d36e, 1168530},
                                         CompressedCase{21, 0x5096000000b095fb, 0xb095fb, 1086981},
                                         CompressedCase{16, 0x4ac00000003d9750, 0x3d9750, 22192}));

TEST(CompressedEntry, TheLengthIsRoundedUpToTheSectorThatEndsIt) {
  for (unsigned bits = 9; bits <= 21; ++bits) {
    const Geometry geometry = geometry_of(bits);
    for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{511},
                                       std::uint64_t{512}, geometry.cluster_size * 5 - 3}) {
      for (const std::uint64_t length :
           {std::uint64_t{1}, std::uint64_t{15}, std::uint64_t{511}, geometry.cluster_size - 1}) {
        const Descriptor d = Descriptor::compressed_at(HostOffset(offset), length);
        EXPECT_GE(d.stored_length, length);
        EXPECT_LT(d.stored_length, length + 512);
        EXPECT_EQ((offset + d.stored_length) % 512, 0u);
        EXPECT_EQ(Descriptor::decode(d.encode(geometry).word, 0, geometry), d);
      }
    }
  }
}

TEST(CompressedEntry, EverySizeFieldUpToItsMaximumIsLegal) {
  for (unsigned bits = 9; bits <= 21; ++bits) {
    const Geometry geometry = geometry_of(bits);
    const std::uint64_t field = (std::uint64_t{1} << (bits - 8)) - 1;
    const std::uint64_t entry = entry_compressed | field << (70 - bits) | 0x10001;
    const Descriptor d = Descriptor::decode(entry, 0, geometry);
    EXPECT_EQ(d.host.bytes(), 0x10001u);
    EXPECT_EQ(d.stored_length, 2 * geometry.cluster_size - 1);
  }
}

TEST(StandardEntry, KindsFollowTheDecodeTable) {
  const Geometry geometry = geometry_of(16);
  EXPECT_EQ(Descriptor::decode(0, 0, geometry), Descriptor::unallocated());
  EXPECT_EQ(Descriptor::decode(1, 0, geometry), Descriptor::zeroes(geometry));
  EXPECT_EQ(Descriptor::decode(0x8000000000050000, 0, geometry),
            Descriptor::normal(geometry, HostOffset(0x50000)));

  const Descriptor preallocated = Descriptor::decode(0x8000000000050001, 0, geometry);
  EXPECT_TRUE(preallocated.has_host && preallocated.copied && preallocated.is_zero(geometry));
  EXPECT_FALSE(preallocated.in_place(geometry));

  const Descriptor shared = Descriptor::decode(0x50000, 0, geometry);
  EXPECT_EQ(shared.allocated, 1u);
  EXPECT_FALSE(shared.in_place(geometry));

  // Bit 63 alone means nothing but beside a data file, where it stands for host offset 0.
  EXPECT_EQ(Descriptor::decode(entry_copied, 0, geometry), Descriptor::unallocated());
  Header with_data_file;
  with_data_file.incompatible_features = incompatible::data_file;
  const Geometry beside(with_data_file);
  EXPECT_EQ(Descriptor::decode(entry_copied, 0, beside), Descriptor::normal(beside, HostOffset(0)));
}

TEST(StandardEntry, ReservedBitsAreIgnored) {
  const Geometry geometry = geometry_of(16);
  EXPECT_EQ(Descriptor::decode(0x8000000000050000 | entry_reserved_mask, 0, geometry).host.bytes(),
            0x50000u);
}

TEST(ExtendedEntry, BitmapsSayWhatEachSubclusterIs) {
  const Geometry geometry = geometry_of(17, true);
  EXPECT_EQ(geometry.subcluster_size, 4096u);
  const Descriptor d = Descriptor::decode(0x80000000000a0000, 0x0000000200000001, geometry);
  EXPECT_EQ(d.allocated, 1u);
  EXPECT_EQ(d.zero, 2u);
  EXPECT_FALSE(d.in_place(geometry));
  EXPECT_EQ(d.encode(geometry).bitmap, 0x0000000200000001u);
  EXPECT_EQ(Descriptor::zeroes(geometry).encode(geometry).bitmap, 0xffffffff00000000u);
  EXPECT_EQ(Descriptor::normal(geometry, HostOffset(0xa0000)).encode(geometry).bitmap, 0xffffffffu);
}

struct CorruptCase {
  const char* name;
  unsigned cluster_bits;
  bool extended;
  unsigned version;
  std::uint64_t word;
  std::uint64_t bitmap;
};

class CorruptEntry : public testing::TestWithParam<CorruptCase> {};

TEST_P(CorruptEntry, IsAnInputOutputError) {
  const CorruptCase& c = GetParam();
  const Geometry geometry = geometry_of(c.cluster_bits, c.extended, c.version);
  try {
    Descriptor::decode(c.word, c.bitmap, geometry);
    FAIL() << "decoded";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), EIO);
    EXPECT_NE(error.message().find("corrupt"), std::string::npos) << error.message();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Qcow2, CorruptEntry,
    testing::Values(CorruptCase{"UnalignedHost", 16, false, 3, 0x8000000000050200, 0},
                    CorruptCase{"ZeroFlagInVersion2", 16, false, 2, 1, 0},
                    CorruptCase{"AllocatedAndZero", 16, true, 3, 0x8000000000050000, 0x100000001},
                    CorruptCase{"AllocatedNowhere", 16, true, 3, 0, 1},
                    CorruptCase{"CompressedBeyondTheFormat", 9, false, 3,
                                entry_compressed | std::uint64_t{1} << 56, 0}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace vise::qcow2
