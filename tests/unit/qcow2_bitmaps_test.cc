// The stored form of persistent bitmaps, and what bounds the harm that a hostile image can do.
#include <gtest/gtest.h>

#include "format/qcow2/bitmap_data.h"
#include "graph/bitmaps.h"
#include "qcow2_file_fixture.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t cluster = 65536;

Header header_for(std::uint64_t size) {
  Header header;
  header.virtual_size = size;
  header.autoclear_features = autoclear::bitmaps;
  header.bitmaps = BitmapsExtension{1, {HostOffset(5 * cluster), 32}};
  return header;
}

TEST(Qcow2BitmapDirectory, IsDecodedToWhatWasEncoded) {
  const Header header = header_for(64 << 20);
  BitmapEntry entry;
  entry.table = {HostOffset(0x50000), 8};
  entry.automatic = true;
  entry.granularity_bits = 16;
  for (const std::string& name :
       {std::string("b"), std::string("12345678"), std::string(1023, 'n')}) {
    entry.name = name;
    entry.in_use = !entry.in_use;
    const std::vector<std::byte> bytes = encode_bitmap_directory(std::span(&entry, 1));
    EXPECT_EQ(bytes.size() % 8, 0u);
    EXPECT_EQ(bytes.size(), bitmap_entry_size(name.size()));
    const std::vector<BitmapEntry> decoded = decode_bitmap_directory(bytes, header);
    ASSERT_EQ(decoded.size(), 1u);
    EXPECT_EQ(decoded[0].table, entry.table);
    EXPECT_EQ(decoded[0].automatic, entry.automatic);
    EXPECT_EQ(decoded[0].in_use, entry.in_use);
    EXPECT_EQ(decoded[0].granularity_bits, entry.granularity_bits);
    EXPECT_EQ(decoded[0].name, name);
  }
}

class Qcow2Bitmaps : public QcowFileTest {
 protected:
  void create(const Value::Dict& options, std::uint64_t size) {
    write_file(file(), new_image(options, size));
  }

  /// Calls `use(root)` with the image open.
  template <class Use>
  void with_image(bool read_only, Use use) {
    OpenRequest request;
    request.filename = file();
    request.format = "qcow2";
    request.defaults.read_only = read_only;
    graph_.on_warning = [this](const std::string& text) { warnings_ += text + "\n"; };
    std::unique_ptr<Child> root = run(graph_.open_root(std::move(request)));
    use(*root);
    run(root->detach());
  }

  /// The errno, 0 if it is fine.
  int failure_of_adding(std::uint64_t granularity) {
    int code = 0;
    with_image(false, [&](Child& root) {
      try {
        add_bitmap(root.node(), {.name = "b", .granularity = granularity, .persistent = true});
      } catch (const Error& error) {
        code = error.code();
      }
    });
    return code;
  }

  std::string warnings_;
};

TEST_F(Qcow2Bitmaps, AreThereAgainAfterReopening) {
  create({}, 64 << 20);
  with_image(false, [&](Child& root) {
    add_bitmap(root.node(), {.name = "b", .granularity = 512, .persistent = true});
    add_bitmap(root.node(), {.name = "gone"});
    const std::vector<std::byte> bytes(512);
    run(root.write(GuestOffset(4096), ConstIoVec(std::span(bytes))));
  });
  with_image(true, [&](Child& root) {
    EXPECT_EQ(bitmaps_of(root.node()).bitmaps().size(), 1u);
    const NodeBitmap& bitmap = get_bitmap(root.node(), "b");
    EXPECT_EQ(bitmap.bits.dirty_bytes(), 512u);
    EXPECT_TRUE(bitmap.bits.is_dirty(GuestOffset(4096)));
    EXPECT_TRUE(bitmap.enabled && bitmap.persistent && !bitmap.inconsistent);
    expect_error(EROFS, "read-only", [&] { clear_bitmap(root.node(), "b"); });
    expect_error(EROFS, "read-only", [&] { run(remove_bitmap(root.node(), "b")); });
    disable_bitmap(root.node(), "b");  // which nobody stores
  });
  with_image(true, [&](Child& root) { EXPECT_TRUE(get_bitmap(root.node(), "b").enabled); });
  EXPECT_EQ(check(Repair::none).leaks, 0u);
  EXPECT_EQ(warnings_, "");
}

TEST_F(Qcow2Bitmaps, ThatCannotBeStoredAreRefusedWhenMade) {
  Value::Dict version2;
  version2.set("compat", "0.10");
  create(version2, 1 << 20);
  EXPECT_EQ(failure_of_adding(512), ENOTSUP);
  create({}, 0);
  EXPECT_EQ(failure_of_adding(512), EINVAL);
  create({}, std::uint64_t{1} << 42);  // 1 GiB of bits
  EXPECT_EQ(failure_of_adding(512), EFBIG);
  EXPECT_EQ(failure_of_adding(1024), 0);
}

TEST_F(Qcow2Bitmaps, TakeNoMoreMemoryThanTheirFileHasBytes) {
  // One cluster named again and again.
  const std::uint64_t entries = 64;
  const std::uint64_t size = entries * cluster * 8 * 512;
  std::vector<std::byte> bytes(2 * cluster, std::byte{0x55});
  for (std::uint64_t i = 0; i < entries; ++i) store_be(bytes.data() + i * 8, cluster);
  write_file(file(), bytes);
  with_file([&](Child& child) {
    const Header header = header_for(size);
    BitmapEntry entry;
    entry.name = "b";
    entry.granularity_bits = 9;
    entry.table = {HostOffset(0), entries * 8};
    BitmapBudget budget;
    budget.stored_bytes = child.size();
    expect_error(EINVAL, "more data than there is",
                 [&] { run(read_bitmap_data(child, header, entry, budget)); });
    budget.bits = 1000;
    expect_error(EFBIG, "limit", [&] { run(read_bitmap_data(child, header, entry, budget)); });
  });
}

}  // namespace
}  // namespace vise::qcow2
