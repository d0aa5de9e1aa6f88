// Which requests dirty bitmaps record, and what may be done with the bitmaps of a node.
#include "graph/bitmaps.h"

#include "memory_driver.h"

namespace vise::test {
namespace {

GuestRange range(std::uint64_t start, std::uint64_t length) { return {GuestOffset(start), length}; }

class GraphBitmaps : public GraphTest {
 protected:
  GraphBitmaps() {
    disk_.bytes.resize(1 << 20);
    disk_.limits.can_zero = disk_.limits.can_discard = true;
    root_ = open(disk_);
  }
  ~GraphBitmaps() override { run(root_->detach()); }

  Node& node() { return root_->node(); }
  NodeBitmap& add(std::string name) {
    return add_bitmap(node(), {.name = std::move(name), .granularity = 4096});
  }
  void write(std::uint64_t offset, std::uint64_t length, WriteFlags flags = {}) {
    const std::vector<std::byte> bytes(length, std::byte{1});
    run(root_->write(GuestOffset(offset), ConstIoVec(std::span(bytes)), flags));
  }
  /// Runs `use`, which must throw; the errno.
  template <class Use>
  int failure_of(Use use) {
    try {
      use();
    } catch (const Error& error) {
      return error.code();
    }
    return 0;
  }

  MemoryDisk disk_;
  std::unique_ptr<Child> root_;
};

TEST_F(GraphBitmaps, WritesZeroWritesAndDiscardsAreRecorded) {
  const NodeBitmap& b = add("b");
  write(4095, 2);
  EXPECT_EQ(b.bits.dirty_bytes(), 8192u);
  run(root_->write_zeroes(range(40960, 100)));
  EXPECT_EQ(b.bits.dirty_bytes(), 3 * 4096u);
  run(root_->discard(range(81920, 8192)));
  EXPECT_EQ(b.bits.dirty_bytes(), 5 * 4096u);
  std::vector<std::byte> buffer(8192);
  run(root_->read(GuestOffset(0), IoVec(std::span(buffer))));
  run(root_->flush());
  EXPECT_EQ(b.bits.dirty_bytes(), 5 * 4096u);
}

TEST_F(GraphBitmaps, WritesThatChangeNothingAreNotRecorded) {
  const NodeBitmap& b = add("b");
  write(0, 4096, {.unchanged = true});
  EXPECT_EQ(b.bits.dirty_bytes(), 0u);
}

TEST_F(GraphBitmaps, AFailedWriteIsRecordedForItMayBeDoneInPart) {
  const NodeBitmap& b = add("b");
  disk_.on_request = [](const char*, GuestRange) { throw Error(EIO, "bad sector"); };
  EXPECT_EQ(failure_of([&] { write(0, 4096); }), EIO);
  disk_.on_request = nullptr;
  EXPECT_EQ(b.bits.dirty_bytes(), 4096u);
}

TEST_F(GraphBitmaps, DisabledOnesKeepTheirBitsAndRecordNothing) {
  const NodeBitmap& b = add("b");
  write(0, 1);
  disable_bitmap(node(), "b");
  write(65536, 1);
  EXPECT_EQ(b.bits.dirty_bytes(), 4096u);
  enable_bitmap(node(), "b");
  write(65536, 1);
  EXPECT_EQ(b.bits.dirty_bytes(), 8192u);
  clear_bitmap(node(), "b");
  EXPECT_EQ(b.bits.dirty_bytes(), 0u);
}

TEST_F(GraphBitmaps, ResizingKeepsWhatIsLeftAndStartsClean) {
  disk_.limits.growable = true;
  const NodeBitmap& b = add("b");
  write(0, 1 << 20);
  run(root_->truncate(1 << 19));
  EXPECT_EQ(b.bits.dirty_bytes(), 1u << 19);
  run(root_->truncate(1 << 21));
  EXPECT_EQ(b.bits.size(), 1u << 21);
  EXPECT_EQ(b.bits.dirty_bytes(), 1u << 19);
}

TEST_F(GraphBitmaps, TheGranularityFollowsTheClusterSize) {
  EXPECT_EQ(default_granularity(node()), 65536u);
  for (const auto& [cluster, granularity] :
       {std::pair{512u, 4096u}, {8192u, 8192u}, {2097152u, 65536u}}) {
    MemoryDisk other;
    other.limits.cluster_size = cluster;
    std::unique_ptr<Child> child = open(other);
    EXPECT_EQ(default_granularity(child->node()), granularity);
    run(child->detach());
  }
}

TEST_F(GraphBitmaps, NamesAreUniqueAndHave1To1023Bytes) {
  add("b");
  EXPECT_EQ(failure_of([&] { add("b"); }), EEXIST);
  EXPECT_EQ(failure_of([&] { add(""); }), EINVAL);
  EXPECT_EQ(failure_of([&] { add(std::string(1024, 'x')); }), EINVAL);
  add(std::string(1023, 'x'));
  EXPECT_EQ(failure_of([&] { get_bitmap(node(), "c"); }), ENOENT);
  EXPECT_EQ(failure_of([&] { run(remove_bitmap(node(), "c")); }), ENOENT);
  run(remove_bitmap(node(), "b"));
  EXPECT_EQ(bitmaps_of(node()).bitmaps().size(), 1u);
}

TEST_F(GraphBitmaps, OneInUseIsLeftAlone) {
  NodeBitmap& b = add("b");
  const NodeBitmap& other = add("other");
  b.users = 1;
  EXPECT_EQ(failure_of([&] { clear_bitmap(node(), "b"); }), EBUSY);
  EXPECT_EQ(failure_of([&] { enable_bitmap(node(), "b"); }), EBUSY);
  EXPECT_EQ(failure_of([&] { disable_bitmap(node(), "b"); }), EBUSY);
  EXPECT_EQ(failure_of([&] { merge_bitmap(node(), "b", other); }), EBUSY);
  EXPECT_EQ(failure_of([&] { merge_bitmap(node(), "other", b); }), EBUSY);
  EXPECT_EQ(failure_of([&] { run(remove_bitmap(node(), "b")); }), EBUSY);
  write(0, 1);  // which it records all the same
  EXPECT_EQ(b.bits.dirty_bytes(), 4096u);
}

TEST_F(GraphBitmaps, AnInconsistentOneCanOnlyBeRemoved) {
  NodeBitmap& b = add("b");
  add("other");
  b.inconsistent = true;
  b.enabled = false;
  EXPECT_EQ(failure_of([&] { clear_bitmap(node(), "b"); }), EINVAL);
  EXPECT_EQ(failure_of([&] { enable_bitmap(node(), "b"); }), EINVAL);
  EXPECT_EQ(failure_of([&] { merge_bitmap(node(), "other", b); }), EINVAL);
  run(remove_bitmap(node(), "b"));
}

TEST_F(GraphBitmaps, OtherFormatsCannotStoreThem) {
  EXPECT_EQ(failure_of([&] { add_bitmap(node(), {.name = "b", .persistent = true}); }), ENOTSUP);
}

}  // namespace
}  // namespace vise::test
