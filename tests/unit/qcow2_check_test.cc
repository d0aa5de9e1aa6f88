// Check and repair: one image per kind of damage, with the findings the format reference lists, the
// result of both repairs, and the verdict of the real qemu-img on the same files.
#include "format/qcow2/check.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <functional>
#include <string>
#include <vector>

#include "format/qcow2/raw_entry.h"
#include "format/qcow2/refcount_packing.h"
#include "format/qcow2/snapshot_table.h"
#include "qcow2_file_fixture.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

using Image = std::vector<std::byte>;

constexpr std::uint64_t cluster = 4096;
constexpr std::uint64_t table = 1 * cluster;
constexpr std::uint64_t block = 2 * cluster;
constexpr std::uint64_t l1 = 3 * cluster;
constexpr std::uint64_t l2 = 4 * cluster;
constexpr std::uint64_t data = 5 * cluster;       // of guest cluster 0
constexpr std::uint64_t squeezed = 19 * cluster;  // holds two compressed clusters
constexpr std::uint64_t file_end = 20 * cluster;

std::uint64_t get(const Image& i, std::uint64_t at) { return load_be<std::uint64_t>(&i[at]); }
void put(Image& i, std::uint64_t at, std::uint64_t value) {
  if (i.size() < at + 8) i.resize(at + 8);
  store_be(&i[at], value);
}
void put32(Image& i, std::uint64_t at, std::uint32_t value) { store_be(&i[at], value); }
void set_count(Image& i, std::uint64_t c, std::uint16_t count) {
  store_be(&i[block + c * 2], count);
}
std::uint16_t count(const Image& i, std::uint64_t c) {
  return load_be<std::uint16_t>(&i[block + c * 2]);
}
std::uint64_t entry(std::uint64_t index) { return l2 + index * 8; }

// 16 guest clusters: 0 to 11 data, 12 unallocated, 13 preallocated zeros, 14 and 15 compressed.
Image sound_image(const char* compat = "1.1") {
  Value::Dict options;
  options.set("cluster_size", "4k");
  options.set("preallocation", "metadata");
  options.set("compat", compat);
  Image image = new_image(options, 16 * cluster);
  image.resize(file_end);
  put(image, entry(12), 0);
  set_count(image, 17, 0);
  if (std::string(compat) == "1.1") put(image, entry(13), get(image, entry(13)) | raw_entry::zero);
  put(image, entry(14), raw_entry::compressed | squeezed);
  put(image, entry(15), raw_entry::compressed | (squeezed + 512));
  set_count(image, 19, 2);
  set_count(image, 20, 0);
  return image;
}

// The same with one internal snapshot: its L1 table in cluster 20, the snapshot table in 21.
Image snapshot_image() {
  Image image = sound_image();
  image.resize(22 * cluster);
  const std::uint64_t l1_entry = get(image, l1) & ~raw_entry::copied;
  put(image, l1, l1_entry);
  put(image, 20 * cluster, l1_entry);
  for (unsigned i = 0; i < 14; ++i) put(image, entry(i), get(image, entry(i)) & ~raw_entry::copied);
  for (std::uint64_t c = 4; c <= 18; ++c) {
    if (c != 17) set_count(image, c, 2);
  }
  set_count(image, 19, 4);
  set_count(image, 20, 1);
  set_count(image, 21, 1);
  SnapshotTable snapshots;
  Snapshot snapshot;
  snapshot.l1_offset = HostOffset(20 * cluster);
  snapshot.l1_entries = 1;
  snapshot.id = "1";
  snapshot.name = "one";
  snapshot.virtual_size = 16 * cluster;
  snapshots.snapshots.push_back(snapshot);
  const Image bytes = snapshots.encode();
  std::copy(bytes.begin(), bytes.end(), image.begin() + 21 * cluster);
  put32(image, 60, 1);
  put(image, 64, 21 * cluster);
  return image;
}

Image extended_image() {
  Value::Dict options;
  options.set("cluster_size", "16k");
  options.set("preallocation", "metadata");
  options.set("extended_l2", "on");
  return new_image(options, 8 * 16384);
}
constexpr std::uint64_t extended_l2 = 4 * 16384;

// One bitmap of one cluster: directory in cluster 20, table in 21, data in 22.
Image bitmap_image() {
  Image image = sound_image();
  image.resize(23 * cluster);
  for (const std::uint64_t c : {20, 21, 22}) set_count(image, c, 1);
  Header header = Header::decode(image);
  header.autoclear_features = autoclear::bitmaps;
  header.bitmaps = BitmapsExtension{1, {HostOffset(20 * cluster), 32}};
  const Image first = header.encode();
  std::copy(first.begin(), first.end(), image.begin());
  put(image, 20 * cluster, 21 * cluster);
  put32(image, 20 * cluster + 8, 1);
  put32(image, 20 * cluster + 16, 0x01100001);  // type 1, 2^16, name of one byte
  put(image, 20 * cluster + 24, std::uint64_t{'b'} << 56);
  put(image, 21 * cluster, 22 * cluster);
  return image;
}

struct Outcome {
  std::uint64_t corruptions = 0;
  std::uint64_t leaks = 0;
  std::uint64_t errors = 0;
  bool breaks_off = false;
};
constexpr Outcome clean = {};
constexpr Outcome breaks_off = {0, 0, 0, true};

enum class Qemu { agrees, differs };

struct Damage {
  const char* name;
  std::function<void(Image&)> change;
  Outcome found;
  Outcome after_leaks;
  Outcome after_all;
  Qemu qemu = Qemu::agrees;  // differs: we find more, or repair more
};

auto or_entry(std::uint64_t at, std::uint64_t bits) {
  return [=](Image& i) { put(i, at, get(i, at) | bits); };
}
auto clear_entry(std::uint64_t at, std::uint64_t bits) {
  return [=](Image& i) { put(i, at, get(i, at) & ~bits); };
}
auto set_entry(std::uint64_t at, std::uint64_t value) {
  return [=](Image& i) { put(i, at, value); };
}
auto counts(std::uint64_t c, std::uint16_t value) {
  return [=](Image& i) { set_count(i, c, value); };
}
constexpr std::uint64_t copied = raw_entry::copied;

const Damage plain_damages[] = {
    {"None", [](Image&) {}, clean, clean, clean},
    {"Leak", counts(17, 1), {0, 1}, clean, clean},
    {"CountTooHigh", counts(5, 2), {1, 1}, clean, clean},
    {"CountTooHighWithoutCopied",
     [](Image& i) {
       set_count(i, 5, 3);
       put(i, entry(0), data);
     },
     {0, 1},
     clean,
     clean},
    {"CountOfSharedClusterTooLow", counts(19, 1), {1, 0}, {1, 0}, clean},
    {"CountZero", counts(5, 0), {2, 0}, breaks_off, clean},
    {"CountOfCompressedZero", counts(19, 0), {1, 0}, breaks_off, clean},
    {"CopiedMissingInL2", clear_entry(entry(3), copied), {1, 0}, clean, clean},
    {"CopiedMissingInL1", clear_entry(l1, copied), {1, 0}, clean, clean},
    {"CopiedMissingOnZeroes", clear_entry(entry(13), copied), {1, 0}, clean, clean},
    {"CopiedOnCompressed", or_entry(entry(14), copied), {1, 0}, {1, 0}, {1, 0}},
    {"ReservedBitsInL2", or_entry(entry(1), 2), {1, 0}, {1, 0}, {1, 0}},
    {"HighReservedBitInL2", or_entry(entry(1), 1ull << 56), {1, 0}, {1, 0}, {1, 0}},
    {"ReservedBitsInL1", or_entry(l1, 4), {1, 0}, {1, 0}, {1, 0}},
    {"HighReservedBitInL1", or_entry(l1, 1ull << 62), {1, 0}, {1, 0}, {1, 0}},
    {"DataUnaligned",
     set_entry(entry(11), (data + 11 * cluster + 512) | copied),
     {2, 0},
     breaks_off,
     {1, 0}},
    {"DataUnalignedIntoANeighbour", or_entry(entry(0), 512), {2, 0}, {2, 0}, {1, 0}},
    {"ZeroesUnaligned", or_entry(entry(13), 512), {2, 0}, {2, 0}, clean},
    {"DataFarBeyondTheEnd", set_entry(entry(0), (1ull << 40) | copied), {2, 1}, {2, 0}, {1, 0}},
    {"DataJustBeyondTheEnd", set_entry(entry(0), file_end | copied), {2, 1}, {2, 0}, {1, 0}},
    {"CompressedBeyondTheEnd",
     set_entry(entry(14), raw_entry::compressed | (1ull << 40)),
     {1, 1},
     {1, 0},
     {1, 0}},
    {"CompressedIntoThePartialLastCluster",
     [](Image& i) {
       put(i, entry(14), raw_entry::compressed | (7ull << 58) | squeezed);
       i.resize(squeezed + 700);
     },
     clean, clean, clean},
    {"TwoEntriesOneCluster", set_entry(entry(1), data | copied), {1, 1}, {1, 0}, clean},
    {"TwoL1EntriesOneTable",
     [](Image& i) {
       put32(i, 36, 2);
       put(i, l1 + 8, get(i, l1));
     },
     {15, 0},
     {15, 0},
     clean},
};

const Damage structure_damages[] = {
    {"DataInL1", set_entry(entry(1), l1 | copied), {2, 1}, {2, 0}, {1, 0}, Qemu::differs},
    {"DataInL2", set_entry(entry(1), l2 | copied), {2, 1}, {2, 0}, {1, 0}, Qemu::differs},
    {"DataInRefcountBlock",
     set_entry(entry(1), block | copied),
     {3, 1},
     breaks_off,
     clean,
     Qemu::differs},
    {"DataInRefcountTable",
     set_entry(entry(1), 0x1000 | copied),
     {2, 1},
     {2, 0},
     {1, 0},
     Qemu::differs},
    {"L2Unaligned", or_entry(l1, 512), {1, 13}, {1, 0}, {1, 0}, Qemu::differs},
    {"L2BeyondTheEnd", set_entry(l1, (1ull << 40) | copied), {2, 15}, {2, 0}, {1, 0}},
    {"L2InL1", set_entry(l1, l1 | copied), {3, 15}, {3, 0}, {2, 0}, Qemu::differs},
    {"TableReservedBits", or_entry(table, 1), {1, 1}, breaks_off, clean, Qemu::differs},
    {"BlockUnaligned", or_entry(table, 512), {1, 0, 1}, breaks_off, clean, Qemu::differs},
    {"BlockBeyondTheEnd", set_entry(table, 1ull << 40), {33, 0}, breaks_off, clean},
    {"BlockTwice", set_entry(table + 8, block), {2, 0}, breaks_off, clean},
    {"BlockIsTheTable", set_entry(table, table), {32, 1}, breaks_off, clean, Qemu::differs},
    {"NoBlock", set_entry(table, 0), {32, 0}, breaks_off, clean},
    {"NoRefcountTable",
     [](Image& i) { put32(i, 56, 0); },
     {32, 0},
     breaks_off,
     clean,
     Qemu::differs},
    {"DirtyAndCorrupt", or_entry(72, 3), clean, clean, clean},
};

const Damage snapshot_damages[] = {
    {"None", [](Image&) {}, clean, clean, clean},
    {"L1Unaligned", or_entry(21 * cluster, 512), {1, 16}, {15, 0}, {1, 0}, Qemu::differs},
    {"L1TooLarge",
     [](Image& i) { put32(i, 21 * cluster + 8, 4194305); },
     {1, 16},
     {15, 0},
     {1, 0},
     Qemu::differs},
    {"CopiedInTheSnapshotIsStale", or_entry(20 * cluster, copied), clean, clean, clean},
    {"CopiedInTheActiveTable", or_entry(entry(0), copied), {1, 0}, clean, clean},
    {"ShortExtraData",
     [](Image& i) {
       const Image entry(i.begin() + 21 * cluster, i.begin() + 22 * cluster);
       put32(i, 21 * cluster + 36, 8);
       std::copy(entry.begin() + 64, entry.begin() + 80, i.begin() + 21 * cluster + 48);
     },
     {1, 0},
     {1, 0},
     clean},
    {"ExcessExtraData",
     [](Image& i) {
       const Image entry(i.begin() + 21 * cluster, i.begin() + 22 * cluster);
       put32(i, 21 * cluster + 36, 1032);
       std::copy(entry.begin() + 64, entry.begin() + 80, i.begin() + 21 * cluster + 40 + 1032);
     },
     {0, 0, 1},
     {0, 0, 1},
     clean},
    {"TooManySnapshots",
     [](Image& i) { put32(i, 60, 65537); },
     {100, 0, 1},
     breaks_off,
     clean,
     Qemu::differs},
};

const Damage extended_damages[] = {
    {"None", [](Image&) {}, clean, clean, clean},
    {"AllocatedAndZero", set_entry(extended_l2 + 8, 0x100000001), {1, 0}, {1, 0}, {1, 0}},
    {"AllocatedWithoutSpace",
     [](Image& i) {
       put(i, extended_l2, 0);
       put(i, extended_l2 + 8, 1);
     },
     {1, 1},
     {1, 0},
     {1, 0}},
    {"CompressedWithBitmap",
     [](Image& i) {
       put(i, extended_l2, raw_entry::compressed | (get(i, extended_l2) & ~copied));
       put(i, extended_l2 + 8, 1);
     },
     {1, 0},
     {1, 0},
     {1, 0},
     Qemu::differs},
    {"SpaceUnalignedWithoutData", or_entry(extended_l2, 512), {2, 0}, {2, 0}, clean},
};

const Damage bitmap_damages[] = {
    {"None", [](Image&) {}, clean, clean, clean},
    {"DataLeaked", set_entry(21 * cluster, 1), {0, 1}, clean, clean},
    {"TableEntryReserved", or_entry(21 * cluster, 2), {1, 1}, {1, 0}, {1, 0}, Qemu::differs},
    {"UnknownType",
     [](Image& i) { i[20 * cluster + 16] = std::byte{2}; },
     {1, 3},
     breaks_off,
     clean,
     Qemu::differs},
    {"Forgotten", set_entry(88, 0), {0, 3}, clean, clean},
};

struct Family {
  const char* name;
  Image (*image)();
  std::span<const Damage> damages;
};
const Family families[] = {
    {"Plain", [] { return sound_image(); }, plain_damages},
    {"Structure", [] { return sound_image(); }, structure_damages},
    {"Snapshot", snapshot_image, snapshot_damages},
    {"ExtendedL2", extended_image, extended_damages},
    {"Bitmap", bitmap_image, bitmap_damages},
};

struct Case {
  const Family* family;
  const Damage* damage;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.family->name << c.damage->name; }

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const Family& family : families) {
    for (const Damage& damage : family.damages) cases.push_back({&family, &damage});
  }
  return cases;
}

class CheckDamaged : public QcowFileTest, public testing::WithParamInterface<Case> {
 protected:
  Image damaged() const {
    Image image = GetParam().family->image();
    GetParam().damage->change(image);
    return image;
  }
  Outcome qemu_outcome() {
    const CommandResult json =
        run_command("qemu-img check --output=json " + file() + " 2>/dev/null");
    const auto number = [&](const std::string& key) -> std::uint64_t {
      const std::size_t at = json.output.find("\"" + key + "\": ");
      return at == std::string::npos ? 0 : std::stoull(json.output.substr(at + key.size() + 4));
    };
    return {number("corruptions"), number("leaks"), number("check-errors"), json.output.empty()};
  }
  void expect(const Outcome& expected, Repair repair) {
    write_file(file(), damaged());
    try {
      const CheckResult result = check(repair);
      EXPECT_FALSE(expected.breaks_off);
      EXPECT_EQ(result.corruptions, expected.corruptions);
      EXPECT_EQ(result.leaks, expected.leaks);
      EXPECT_EQ(result.check_errors, expected.errors);
    } catch (const Error& error) {
      EXPECT_TRUE(expected.breaks_off) << error.what();
    }
    if (HasFailure()) ADD_FAILURE() << findings_;
  }
};

TEST_P(CheckDamaged, IsFound) { expect(GetParam().damage->found, Repair::none); }
TEST_P(CheckDamaged, RepairOfLeaks) { expect(GetParam().damage->after_leaks, Repair::leaks); }
TEST_P(CheckDamaged, RepairOfEverything) { expect(GetParam().damage->after_all, Repair::all); }

TEST_P(CheckDamaged, QemuSaysTheSame) {
  if (!have_qemu_img()) GTEST_SKIP() << "qemu-img is not installed";
  const Damage& damage = *GetParam().damage;
  write_file(file(), damaged());
  if (damage.qemu == Qemu::agrees) {
    const Outcome qemu = qemu_outcome();
    EXPECT_EQ(qemu.corruptions, damage.found.corruptions);
    EXPECT_EQ(qemu.leaks, damage.found.leaks);
    EXPECT_EQ(qemu.errors > 0 || qemu.breaks_off, damage.found.errors > 0);
  }
  // What we call repaired, QEMU finds sound.
  if (damage.after_all.corruptions + damage.after_all.leaks + damage.after_all.errors > 0) return;
  const CheckResult ours = check(Repair::all);
  EXPECT_EQ(ours.corruptions + ours.leaks + ours.check_errors, 0u);
  const CommandResult qemu = run_command("qemu-img check " + file() + " 2>&1");
  EXPECT_EQ(qemu.status, 0) << qemu.output;
}

INSTANTIATE_TEST_SUITE_P(Qcow2, CheckDamaged, testing::ValuesIn(all_cases()), [](const auto& c) {
  return std::string(c.param.family->name) + c.param.damage->name;
});

class Check : public QcowFileTest {};

TEST_F(Check, CountsWhatIsThere) {
  write_file(file(), sound_image());
  const CheckResult result = check(Repair::none);
  EXPECT_EQ(result.total_clusters, 16u);
  EXPECT_EQ(result.allocated_clusters, 15u);
  EXPECT_EQ(result.compressed_clusters, 2u);
  EXPECT_EQ(result.fragmented_clusters, 3u);  // and guest cluster 13, behind the gap
  EXPECT_EQ(result.image_end_offset, file_end);
  EXPECT_EQ(findings_, "");
}

TEST_F(Check, ReportsOneLinePerFinding) {
  Image image = sound_image();
  set_count(image, 17, 1);
  set_count(image, 19, 1);
  write_file(file(), image);
  check(Repair::none);
  EXPECT_EQ(findings_,
            "Leaked cluster 17 refcount=1 reference=0\nERROR cluster 19 refcount=1 reference=2\n");
}

TEST_F(Check, RepairCountsWhatItFixed) {
  Image image = sound_image();
  set_count(image, 17, 1);
  set_count(image, 19, 1);
  put(image, entry(2), get(image, entry(2)) & ~copied);
  write_file(file(), image);
  const CheckResult result = check(Repair::all);
  EXPECT_EQ(result.leaks_fixed, 1u);
  EXPECT_EQ(result.corruptions_fixed, 2u);
  EXPECT_EQ(read_file(file()), sound_image());
}

TEST_F(Check, WithoutRepairNothingIsWritten) {
  for (const Case& c : all_cases()) {
    Image image = c.family->image();
    c.damage->change(image);
    write_file(file(), image);
    try {
      check(Repair::none);
    } catch (const Error&) {
    }
    EXPECT_EQ(read_file(file()), image) << c.damage->name;
  }
}

TEST_F(Check, RepairClearsDirtyAndCorrupt) {
  Image image = sound_image();
  put(image, 72, incompatible::dirty | incompatible::corrupt);
  write_file(file(), image);
  check(Repair::leaks);
  EXPECT_EQ(get(read_file(file()), 72), 0u);
}

TEST_F(Check, EveryRefcountWidthIsReadAndWritten) {
  for (const char* bits : {"1", "2", "4", "8", "16", "32", "64"}) {
    Value::Dict options;
    options.set("cluster_size", "4k");
    options.set("preallocation", "metadata");
    options.set("refcount_bits", bits);
    const Image sound = new_image(options, 40 * cluster);
    const unsigned order = CreateOptions::parse(options).refcount_order;
    write_file(file(), sound);
    EXPECT_EQ(check(Repair::none).leaks, 0u) << bits;
    Image image = sound;
    put(image, entry(7), 0);  // its cluster leaks
    write_file(file(), image);
    EXPECT_EQ(check(Repair::leaks).leaks_fixed, 1u) << bits;
    EXPECT_EQ(load_refcount(&read_file(file())[block], order, 12), 0u) << bits;
    image = sound;
    store_refcount(&image[block], order, 11, 0);
    write_file(file(), image);
    EXPECT_EQ(check(Repair::all).corruptions, 0u) << bits << findings_;
  }
}

TEST_F(Check, CountsThatCannotBeStoredStayAFinding) {
  Value::Dict options;
  options.set("cluster_size", "4k");
  options.set("preallocation", "metadata");
  options.set("refcount_bits", "1");
  Image image = new_image(options, 4 * cluster);
  put(image, entry(1), get(image, entry(0)));
  write_file(file(), image);
  EXPECT_EQ(check(Repair::all).corruptions, 1u) << findings_;
}

// 4096 L1 entries that all lead to one table: each data cluster has 4096 references.
TEST_F(Check, AllL1EntriesMayNameOneTable) {
  Image image = sound_image();
  put32(image, 36, 512);
  for (unsigned i = 1; i < 512; ++i) put(image, l1 + i * 8, get(image, l1));
  write_file(file(), image);
  const CheckResult result = check(Repair::all);
  EXPECT_EQ(result.corruptions, 0u) << findings_;
  const Image repaired = read_file(file());
  EXPECT_EQ(count(repaired, 4), 512u);
  EXPECT_EQ(count(repaired, 5), 512u);
  EXPECT_EQ(count(repaired, 19), 1024u);
}

TEST_F(Check, AHugeSparseFileNeedsLittle) {
  Image image = sound_image();
  write_file(file(), image);
  std::filesystem::resize_file(file(), std::uint64_t{1} << 42);
  EXPECT_EQ(check(Repair::none).corruptions, 0u);
}

TEST_F(Check, TooManyClustersAreRefused) {
  Value::Dict options;
  options.set("cluster_size", "512");
  write_file(file(), new_image(options, 1 << 20));
  std::filesystem::resize_file(file(), (std::uint64_t{1} << 41) + 512);
  expect_error(EFBIG, "clusters", [&] { check(Repair::none); });
}

// Whatever the metadata says, check ends, and a repair of everything can be checked again.
TEST_F(Check, RandomDamageNeverCrashes) {
  const unsigned seed = test_seed();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    Image image = families[random() % std::size(families)].image();
    for (unsigned change = 1 + random() % 6; change > 0; --change) {
      const std::uint64_t at =
          random() % 2 == 0 ? random() % image.size() : (random() % 22) * cluster + random() % 128;
      if (at < 4 || at >= image.size()) continue;
      image[at] ^= static_cast<std::byte>(1u << random() % 8);
    }
    write_file(file(), image);
    const Repair repair = random() % 2 == 0 ? Repair::all : Repair::leaks;
    try {
      check(repair);
      check(Repair::none);
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace vise::qcow2
