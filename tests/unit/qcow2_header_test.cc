// The qcow2 header: every rule of the format has one hostile image, and what is written is what
// QEMU writes.
#include "format/qcow2/header.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>

#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

using Image = std::vector<std::byte>;

template <class T>
void put(Image& image, std::size_t at, T value) {
  if (image.size() < at + sizeof(T)) image.resize(at + sizeof(T));
  store_be(&image[at], value);
}
void put32(Image& image, std::size_t at, std::uint32_t value) { put(image, at, value); }
void put64(Image& image, std::size_t at, std::uint64_t value) { put(image, at, value); }
void put_text(Image& image, std::size_t at, std::string_view text) {
  if (image.size() < at + text.size()) image.resize(at + text.size());
  std::memcpy(&image[at], text.data(), text.size());
}
void put_extension(Image& image, std::size_t at, std::uint32_t type, std::string_view data) {
  put32(image, at, type);
  put32(image, at + 4, static_cast<std::uint32_t>(data.size()));
  put_text(image, at + 8, data);
}

// The 1 GiB image of the format reference, without feature names.
Image valid_image() {
  Image image(65536);
  put32(image, 0, 0x514649fb);
  put32(image, 4, 3);
  put32(image, 20, 16);
  put64(image, 24, std::uint64_t{1} << 30);
  put32(image, 36, 2);
  put64(image, 40, 0x30000);
  put64(image, 48, 0x10000);
  put32(image, 56, 1);
  put32(image, 96, 4);
  put32(image, 100, 112);
  return image;
}

struct HeaderCase {
  const char* name;
  std::function<void(Image&)> change;  // of the valid image
  int error;                           // errno thrown; 0: decodes
  const char* message;                 // part of what the user sees
};

void PrintTo(const HeaderCase& c, std::ostream* out) { *out << c.name; }

class HeaderDecode : public testing::TestWithParam<HeaderCase> {};

TEST_P(HeaderDecode, AcceptsOrNamesTheFault) {
  const HeaderCase& c = GetParam();
  Image image = valid_image();
  c.change(image);
  try {
    Header::decode(image);
    EXPECT_EQ(c.error, 0) << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), c.error) << error.what();
    EXPECT_NE(error.message().find(c.message), std::string::npos) << error.what();
  }
}

auto set32(std::size_t at, std::uint32_t value) {
  return [=](Image& image) { put32(image, at, value); };
}
auto set64(std::size_t at, std::uint64_t value) {
  return [=](Image& image) { put64(image, at, value); };
}
auto extension(std::uint32_t type, std::size_t length) {
  return [=](Image& image) { put_extension(image, 112, type, std::string(length, 'x')); };
}
void luks(Image& image, std::uint64_t offset, std::uint64_t length) {
  put32(image, 32, 2);
  put_extension(image, 112, 0x0537be77, std::string(16, 'x'));
  put64(image, 120, offset);
  put64(image, 128, length);
}
void bitmaps(Image& image, std::uint32_t count, std::uint64_t length, std::uint64_t offset) {
  put64(image, 88, 1);
  put_extension(image, 112, 0x23852875, std::string(24, '\0'));
  put32(image, 120, count);
  put64(image, 128, length);
  put64(image, 136, offset);
}
void version_2(Image& image) {
  put32(image, 4, 2);
  std::memset(&image[72], 0, 40);
}
void clusters_512(Image& image) {
  image.resize(512);
  put32(image, 20, 9);
  put64(image, 24, 1 << 15);
  put64(image, 40, 0x600);
  put64(image, 48, 0x200);
}

const HeaderCase identity_cases[] = {
    {"Valid", [](Image&) {}, 0, ""},
    {"Version2", version_2, 0, ""},
    {"OtherMagic", set32(0, 0x514649fa), EINVAL, "not in qcow2 format"},
    {"Empty", [](Image& i) { i.clear(); }, EINVAL, "not in qcow2 format"},
    {"Version1", set32(4, 1), ENOTSUP, "version 1"},
    {"Version4", set32(4, 4), ENOTSUP, "version 4"},
    {"ClustersTooSmall", set32(20, 8), EINVAL, "2^8"},
    {"ClustersTooLarge", set32(20, 22), EINVAL, "2^22"},
    {"ShiftWiderThanTheType", set32(20, UINT32_MAX), EINVAL, "Cluster size"},
    {"Clusters512", clusters_512, 0, ""},
    {"CryptMethod3", set32(32, 3), EINVAL, "Encryption method 3"},
    {"Aes", set32(32, 1), 0, ""},
    {"LuksWithoutExtension", set32(32, 2), EINVAL, "no crypto header"},
    {"TruncatedAfterMagic", [](Image& i) { i.resize(4); }, ENOTSUP, "version 0"},
    {"TruncatedInFields", [](Image& i) { i.resize(50); }, EINVAL, "Header length 0"},
};
const HeaderCase table_cases[] = {
    {"L1AtTheLimit", set32(36, 4194304), 0, ""},
    {"L1TooLarge", set32(36, 4194305), EFBIG, "L1 table of 4194305"},
    {"L1CountWrapsTimesEight", set32(36, 0x20000001), EFBIG, "L1 table"},
    {"L1Unaligned", set64(40, 0x30200), EINVAL, "L1 table offset 0x30200"},
    {"L1PastTwoTo63", set64(40, 0x7fffffffffff0000), 0, ""},
    {"L1EndsPastTwoTo63", set64(40, 0xffffffffffff0000), EINVAL, "L1 table at"},
    {"L1TooSmall", set32(36, 1), EINVAL, "too small"},
    {"L1EmptyForEmptyDisk",
     [](Image& i) {
       put64(i, 24, 0);
       put32(i, 36, 0);
     },
     0, ""},
    {"SizeTwoTo63", set64(24, std::uint64_t{1} << 63), EFBIG, "Virtual size"},
    {"SizeThatWrapsWhenRounded", set64(24, UINT64_MAX - 511), EFBIG, "Virtual size"},
    {"SizeWithinSignedButHuge", set64(24, std::uint64_t{1} << 62), EFBIG, "Virtual size"},
    {"SizeBeyondL1", set64(24, (std::uint64_t{1} << 30) + 512), EINVAL, "3 needed"},
    {"RefcountTableUnaligned", set64(48, 0x10008), EINVAL, "Refcount table offset"},
    {"RefcountTableWraps", set64(48, 0xffffffffffff0000), EINVAL, "Refcount table at"},
    {"NoRefcountTable", set32(56, 0), EINVAL, "no refcount table"},
    {"RefcountTableAtTheLimit", set32(56, 128), 0, ""},
    {"RefcountTableTooLarge", set32(56, 129), EFBIG, "129 clusters"},
    {"RefcountTableShiftWraps", set32(56, 0x80000001), EFBIG, "Refcount table"},
    {"SnapshotsAtTheLimit", set32(60, 65536), 0, ""},
    {"TooManySnapshots", set32(60, 65537), EFBIG, "65537 snapshots"},
    {"SnapshotTableUnaligned", set64(64, 1), EINVAL, "Snapshot table"},
    {"SnapshotTablePastTwoTo63", set64(64, 0xffff000000000000), EINVAL, "Snapshot table"},
};
const HeaderCase feature_cases[] = {
    {"DirtyOpens", set64(72, 1), 0, ""},
    {"CorruptOpens", set64(72, 2), 0, ""},
    {"DataFile", set64(72, 4), 0, ""},
    {"UnknownIncompatibleBit", set64(72, 1u << 5), ENOTSUP, "unknown bits 0x20"},
    {"UnknownBitNamed",
     [](Image& i) {
       put64(i, 72, (1u << 6) | (1u << 7));
       put_extension(i, 112, 0x6803f857,
                     std::string("\0\6time travel", 13) + std::string(35, '\0'));
     },
     ENOTSUP, "time travel, unknown bits 0x80"},
    {"NamesThatWouldReachTheTerminal",
     [](Image& i) {
       put64(i, 72, 1u << 6);
       put_extension(i, 112, 0x6803f857, std::string("\0\6a\33[2Jb", 8) + std::string(40, '\0'));
     },
     ENOTSUP, "a?[2Jb"},
    {"NameThatFillsItsField",
     [](Image& i) {
       put64(i, 72, 1u << 6);
       put_extension(i, 112, 0x6803f857, std::string("\0\6", 2) + std::string(46, 'n'));
     },
     ENOTSUP, "nnnn"},
    {"IncompleteImage", set64(72, incompatible::incomplete), ENOTSUP, "Image is incomplete"},
    {"UnknownCompatibleBits", set64(80, ~1ull), 0, ""},
    {"UnknownAutoclearBits", set64(88, ~3ull), 0, ""},
    {"RawDataFileWithoutDataFile", set64(88, 2), EINVAL, "raw external data file"},
    {"RawDataFileWithBackingFile",
     [](Image& i) {
       put64(i, 72, 4);
       put64(i, 88, 2);
       put64(i, 8, 120);
       put32(i, 16, 4);
       put_text(i, 120, "base");
     },
     EINVAL, "both a raw external data file and a backing file"},
    {"ExtendedL2",
     [](Image& i) {
       put64(i, 72, 16);
       put32(i, 36, 4);
     },
     0, ""},
    {"ExtendedL2HalvesTheCoverage", set64(72, 16), EINVAL, "4 needed"},
    {"ExtendedL2InSmallClusters",
     [](Image& i) {
       clusters_512(i);
       put64(i, 72, 16);
     },
     EINVAL, "at least 16384"},
    {"RefcountOrder6", set32(96, 6), 0, ""},
    {"RefcountOrder7", set32(96, 7), EINVAL, "2^7"},
    {"RefcountOrderWiderThanTheType", set32(96, UINT32_MAX), EINVAL, "count width"},
    {"CompressionFlagWithoutType", set64(72, 8), EINVAL, "Compression type 0"},
    {"CompressionTypeWithoutFlag", [](Image& i) { i[104] = std::byte{1}; }, EINVAL, "contradict"},
    {"Zstd",
     [](Image& i) {
       put64(i, 72, 8);
       i[104] = std::byte{1};
     },
     0, ""},
    {"UnknownCompression",
     [](Image& i) {
       put64(i, 72, 8);
       i[104] = std::byte{2};
     },
     ENOTSUP, "Compression type 2"},
};
const HeaderCase extension_cases[] = {
    {"HeaderLength104", set32(100, 104), 0, ""},
    {"HeaderLengthTooSmall", set32(100, 96), EINVAL, "Header length 96"},
    {"HeaderLengthUnaligned", set32(100, 105), EINVAL, "multiple of 8"},
    {"HeaderLengthIsTheCluster", set32(100, 65536), 0, ""},
    {"HeaderLengthBeyondTheCluster", set32(100, 65544), EINVAL, "65544"},
    {"TerminatorLongerThanTheArea", set32(116, 65536 - 119), EINVAL, "0x00000000"},
    {"ExtensionFillsTheArea", extension(0x12345678, 65536 - 120), 0, ""},
    {"ExtensionLengthWraps",
     [](Image& i) {
       put32(i, 112, 0x12345678);
       put32(i, 116, UINT32_MAX);
     },
     EINVAL, "0x12345678"},
    {"ExtensionPastTheArea",
     [](Image& i) {
       put32(i, 112, 0x12345678);
       put32(i, 116, 65536 - 119);
     },
     EINVAL, "are left"},
    {"AreaEndsInsideAnExtension", set64(8, 116), EINVAL, "ends inside"},
    {"BackingFormatAtTheLimit", extension(0xe2792aca, 15), 0, ""},
    {"BackingFormatTooLong", extension(0xe2792aca, 16), EINVAL, "16 bytes"},
    {"BitmapsExtensionTooShort", extension(0x23852875, 23), EINVAL, "23 bytes, not 24"},
    {"CryptoHeaderTooLong", extension(0x0537be77, 17), EINVAL, "17 bytes, not 16"},
    {"CryptoHeaderWithoutLuks", extension(0x0537be77, 16), EINVAL, "encryption method 0"},
    {"Luks", [](Image& i) { luks(i, 0x40000, 0x1f8000); }, 0, ""},
    {"LuksUnaligned", [](Image& i) { luks(i, 0x40001, 592); }, EINVAL, "Crypto header offset"},
    {"LuksTooLong", [](Image& i) { luks(i, 0x40000, UINT64_MAX); }, EINVAL, "longer than"},
    {"Bitmaps", [](Image& i) { bitmaps(i, 1, 32, 0x40000); }, 0, ""},
    {"NoBitmaps", [](Image& i) { bitmaps(i, 0, 32, 0x40000); }, EINVAL, "names 0 bitmaps"},
    {"TooManyBitmaps", [](Image& i) { bitmaps(i, 65536, 32, 0x40000); }, EINVAL, "65536"},
    {"DirectoryTooLong", [](Image& i) { bitmaps(i, 1, 67107841, 0x40000); }, EINVAL,
     "67107841 bytes"},
    {"DirectoryUnaligned", [](Image& i) { bitmaps(i, 1, 32, 8); }, EINVAL, "Bitmap directory"},
    {"BitmapsOfSomebodyWhoWroteWithoutThem",
     [](Image& i) {
       bitmaps(i, 0, 0, 1);
       put64(i, 88, 0);
     },
     0, ""},
    {"BackingNameBeyondTheCluster", set64(8, 65537), EINVAL, "65537"},
    {"BackingNameAtTheEndOfTheCluster", set64(8, 65536), 0, ""},
    {"BackingNameTooLong",
     [](Image& i) {
       put64(i, 8, 120);
       put32(i, 16, 1024);
     },
     EINVAL, "1024 bytes"},
    {"BackingNamePastTheCluster",
     [](Image& i) {
       put64(i, 8, 65530);
       put32(i, 16, 7);
     },
     EINVAL, "7 bytes"},
    {"BackingSizeWithoutOffset", set32(16, UINT32_MAX), 0, ""},
    {"BackingNameWithNul",
     [](Image& i) {
       put64(i, 8, 120);
       put32(i, 16, 3);
       put_text(i, 120, std::string_view("a\0b", 3));
     },
     EINVAL, "NUL"},
    {"BackingNameInsideTheHeader",
     [](Image& i) {
       put64(i, 8, 1);
       put32(i, 16, 1);
     },
     0, ""},
};

std::string case_name(const testing::TestParamInfo<HeaderCase>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Identity, HeaderDecode, testing::ValuesIn(identity_cases), case_name);
INSTANTIATE_TEST_SUITE_P(Tables, HeaderDecode, testing::ValuesIn(table_cases), case_name);
INSTANTIATE_TEST_SUITE_P(Features, HeaderDecode, testing::ValuesIn(feature_cases), case_name);
INSTANTIATE_TEST_SUITE_P(Extensions, HeaderDecode, testing::ValuesIn(extension_cases), case_name);

TEST(HeaderDecodeForCheck, OpensWhatOnlyRepairCanMend) {
  Image image = valid_image();
  put32(image, 56, 0);
  put32(image, 60, 65537);
  const Header h = Header::decode(image, Header::Purpose::check);
  EXPECT_EQ(h.refcount_table_clusters, 0u);
  EXPECT_EQ(h.snapshot_count, 65537u);
}

TEST(HeaderDecodeFields, SizeIsCutToSectors) {
  Image image = valid_image();
  put64(image, 24, 1000);
  EXPECT_EQ(Header::decode(image).virtual_size, 512u);
}

TEST(HeaderDecodeFields, StringsEndAtTheFirstNul) {
  Image image = valid_image();
  put64(image, 72, 4);
  put_extension(image, 112, 0x44415441, std::string_view("d.raw\0json:", 11));
  put_extension(image, 136, 0xe2792aca, "qcow2");
  put64(image, 8, 160);
  put32(image, 16, 8);
  put_text(image, 160, "base.img");
  const Header h = Header::decode(image);
  EXPECT_EQ(h.data_file_name, "d.raw");
  EXPECT_EQ(h.backing_format, "qcow2");
  EXPECT_EQ(h.backing_name, "base.img");
}

TEST(HeaderEncode, DefaultImageIsByteForByteQemus) {
  Header h;
  h.virtual_size = std::uint64_t{1} << 30;
  h.l1_entries = 2;
  h.l1_offset = HostOffset(0x30000);
  h.refcount_table_offset = HostOffset(0x10000);
  h.refcount_table_clusters = 1;
  Image expected = valid_image();
  std::string names;
  const auto add = [&](char word, char bit, std::string name) {
    name.resize(46);
    names += std::string{word, bit} + name;
  };
  add(0, 0, "dirty bit");
  add(0, 1, "corrupt bit");
  add(0, 2, "external data file");
  add(0, 3, "compression type");
  add(0, 4, "extended L2 entries");
  add(1, 0, "lazy refcounts");
  add(2, 0, "bitmaps");
  add(2, 1, "raw external data");
  ASSERT_EQ(names.size(), 384u);
  put_extension(expected, 112, 0x6803f857, names);
  EXPECT_EQ(h.encode(), expected);
}

TEST(HeaderEncode, KeepsWhatItDoesNotKnow) {
  Image image = valid_image();
  put32(image, 100, 128);
  put64(image, 112, 0x1122334455667788);
  put64(image, 80, 0xf0);
  put_extension(image, 128, 0xcafe0001, "one");
  put_extension(image, 144, 0xcafe0002, "twotwotwo");
  const Header h = Header::decode(image);
  const Header again = Header::decode(h.encode());
  EXPECT_EQ(again.unknown_fields, h.unknown_fields);
  ASSERT_EQ(again.unknown_fields.size(), 16u);
  EXPECT_EQ(load_be<std::uint64_t>(again.unknown_fields.data()), 0x1122334455667788u);
  EXPECT_EQ(again.compatible_features, 0xf0u);
  ASSERT_EQ(again.unknown_extensions.size(), 2u);
  EXPECT_EQ(again.unknown_extensions[0].type, 0xcafe0001u);
  EXPECT_EQ(again.unknown_extensions[0].data.size(), 3u);
  EXPECT_EQ(again.unknown_extensions[1].data.size(), 9u);
}

TEST(HeaderEncode, ShortHeaderGrowsToTheFieldsWeKnow) {
  Image image = valid_image();
  put32(image, 100, 104);
  const Image again = Header::decode(image).encode();
  EXPECT_EQ(load_be<std::uint32_t>(&again[100]), 112u);
}

TEST(HeaderEncode, EveryExtensionSurvives) {
  Image image = valid_image();
  luks(image, 0x40000, 0x1f8000);
  put64(image, 88, 1);
  put_extension(image, 136, 0x23852875, std::string(24, '\0'));
  put32(image, 144, 3);
  put64(image, 152, 96);
  put64(image, 160, 0x90000);
  put_extension(image, 168, 0xe2792aca, "raw");
  put64(image, 8, 200);
  put32(image, 16, 8);
  put_text(image, 200, "base.img");
  const Header h = Header::decode(Header::decode(image).encode());
  ASSERT_TRUE(h.crypto_header);
  EXPECT_EQ(*h.crypto_header, (HostRange{HostOffset(0x40000), 0x1f8000}));
  ASSERT_TRUE(h.bitmaps);
  EXPECT_EQ(h.bitmaps->count, 3u);
  EXPECT_EQ(h.bitmaps->directory, (HostRange{HostOffset(0x90000), 96}));
  EXPECT_EQ(h.backing_format, "raw");
  EXPECT_EQ(h.backing_name, "base.img");
}

TEST(HeaderEncode, BackingNameFillsASmallClusterExactly) {
  Image image = valid_image();
  clusters_512(image);
  Header h = Header::decode(image);
  h.backing_format = "raw";
  h.backing_name = std::string(376, 'b');
  EXPECT_EQ(Header::decode(h.encode()).backing_name, h.backing_name);
  h.backing_name += 'b';
  try {
    h.encode();
    FAIL() << "fits";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ENOSPC);
  }
}

TEST(HeaderEncode, IncompleteImagesNameTheBitInEveryClusterSize) {
  for (const bool small : {false, true}) {
    Image image = valid_image();
    if (small) clusters_512(image);
    Header h = Header::decode(image);
    h.incompatible_features |= incompatible::incomplete;
    const Image written = h.encode();
    const std::string text(reinterpret_cast<const char*>(written.data()), written.size());
    EXPECT_NE(text.find(std::string("\0\76incomplete image", 18)), std::string::npos);
    EXPECT_THROW(Header::decode(written), Error);
  }
}

TEST(HeaderCheckWritable, RefusesOverlapsAndCorruptImages) {
  struct Case {
    std::function<void(Header&)> change;
    int error;
    const char* message;
  };
  const Case cases[] = {
      {[](Header&) {}, 0, ""},
      {[](Header& h) { h.incompatible_features = incompatible::corrupt; }, EACCES, "corrupt"},
      {[](Header& h) { h.l1_offset = HostOffset(0); }, EINVAL,
       "L1 table at 0x0 overlaps the header"},
      {[](Header& h) { h.refcount_table_offset = HostOffset(0); }, EINVAL, "refcount table at 0x0"},
      {[](Header& h) { h.refcount_table_offset = h.l1_offset; }, EINVAL, "overlaps the L1 table"},
      {[](Header& h) { h.snapshots_offset = h.l1_offset; }, EINVAL, "snapshot table"},
      {[](Header& h) { h.bitmaps = {1, {h.l1_offset, 32}}; }, EINVAL, "bitmap directory"},
  };
  for (const Case& c : cases) {
    Header h = Header::decode(valid_image());
    h.snapshots_offset = HostOffset(0x40000);
    c.change(h);
    try {
      h.check_writable(64);
      EXPECT_EQ(c.error, 0) << c.message;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), c.error) << error.what();
      EXPECT_NE(error.message().find(c.message), std::string::npos) << error.what();
    }
  }
}

// Whatever the bytes, decode() answers or throws Error, and what it accepts can be written back.
TEST(HeaderFuzz, RandomChangesNeverCrash) {
  const char* fixed = std::getenv("VISE_TEST_SEED");
  const unsigned seed = fixed != nullptr ? std::stoul(fixed) : std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 20000; ++round) {
    Image image = valid_image();
    image.resize(4096);
    if (round % 3 == 0) clusters_512(image);
    put_extension(image, 112, 0x6803f857, std::string(96, 'x'));
    put_extension(image, 216, 0xe2792aca, "qcow2");
    put64(image, 8, 300);
    put32(image, 16, 20);
    for (unsigned change = random() % 4; change > 0; --change) {
      const std::size_t at = random() % (round % 2 == 0 ? 330 : 120);
      image[at] = static_cast<std::byte>(random() % 3 == 0 ? random() : (random() % 4) * 0x55);
    }
    image.resize(random() % 4 == 0 ? random() % image.size() : image.size());
    try {
      const Header h = Header::decode(image);
      EXPECT_LE(h.l1_table().length, max_l1_bytes);
      Header::decode(h.encode());
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace vise::qcow2
