// What reaches the file: few, large writes in bulk jobs, and never one that hits bytes which the
// disk still points to.
#include <gtest/gtest.h>

#include <random>

#include "copy/copy.h"
#include "copy/difference_copy.h"
#include "format/qcow2/check.h"
#include "format/qcow2/qcow2.h"
#include "memory_driver.h"
#include "qcow2_test_support.h"

namespace vise::qcow2 {
namespace {

class HostWrites : public test::GraphTest {
 protected:
  /// A device of `host_size` bytes with an empty image of `size` bytes.
  void make_image(const char* cluster_size, std::uint64_t size, std::uint64_t host_size) {
    Value::Dict options;
    options.set("cluster_size", cluster_size);
    file_.bytes = new_image(options, size);
    file_.bytes.resize(host_size);
    file_.on_request = [this](const char* request, GuestRange range) {
      if (std::string_view(request) == "write" && on_write_) on_write_(range);
    };
  }
  std::unique_ptr<Child> open_image() { return open_image(file_); }
  std::unique_ptr<Child> open_image(test::MemoryDisk& file) {
    Value::Dict options;
    options.set("driver", "qcow2");
    options.set("file", test::memory_options(file));
    return open(std::move(options));
  }

  test::MemoryDisk file_;
  std::function<void(GuestRange)> on_write_;
};

// Clusters of noise, which do not shrink, between others.
std::vector<std::byte> noise_between(std::size_t size, std::size_t cluster,
                                     std::mt19937_64& random) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) {
    const bool is_noise = i / cluster % 3 == 0 || i % 4 == 0;
    bytes[i] = static_cast<std::byte>(is_noise ? random() : i);
  }
  return bytes;
}

// Half noise, half text.
std::vector<std::byte> half_noise(std::size_t size, std::mt19937_64& random) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) {
    bytes[i] = i / 1024 % 2 == 0 ? static_cast<std::byte>(random()) : static_cast<std::byte>(i);
  }
  return bytes;
}

class BulkJob : public HostWrites, public testing::WithParamInterface<bool> {
 protected:
  static constexpr std::uint64_t size = 12 << 20;

  void SetUp() override {
    make_image("64k", size, 2 * size);
    std::mt19937_64 random(1);
    source_.bytes = GetParam() ? noise_between(size, 65536, random) : half_noise(size, random);
    on_write_ = [this](GuestRange range) {
      ++writes_;
      bytes_ += range.length;
    };
  }
  void convert(Child& from, Child& to) {
    CopyRequest request;
    request.sources = {&from};
    request.target = &to;
    request.options.compressed = true;
    request.options.target_is_zero = true;
    run(copy(std::move(request)));
  }
  /// Of the image in `file_`, which is then as the source was.
  void expect_large_writes(Child& to) {
    EXPECT_GT(bytes_, size / 3);
    EXPECT_LE(writes_, divide_up(bytes_, 512u << 10)) << bytes_ << " bytes";
    std::vector<std::byte> content(size);
    run(to.read(GuestOffset(0), IoVec(std::span(content))));
    EXPECT_TRUE(content == source_.bytes);
  }
  /// What is compressed in `file_` moves to another file.
  void set_aside(test::MemoryDisk& file) {
    file.bytes = file_.bytes;
    make_image("64k", size, 2 * size);
    writes_ = bytes_ = 0;
  }

  test::MemoryDisk source_;
  std::uint64_t writes_ = 0;
  std::uint64_t bytes_ = 0;
};

TEST_P(BulkJob, WritesLargePiecesWhereItCompresses) {
  std::unique_ptr<Child> from = open(source_);
  std::unique_ptr<Child> to = open_image();
  convert(*from, *to);
  expect_large_writes(*to);
  run(to->detach());
  run(from->detach());
}

TEST_P(BulkJob, WritesLargePiecesWhereItCopiesWhatIsStored) {
  test::MemoryDisk compressed;
  {
    std::unique_ptr<Child> from = open(source_);
    std::unique_ptr<Child> to = open_image();
    convert(*from, *to);
    run(to->detach());
    run(from->detach());
  }
  set_aside(compressed);
  std::unique_ptr<Child> from = open_image(compressed);
  std::unique_ptr<Child> to = open_image();
  convert(*from, *to);
  expect_large_writes(*to);
  run(to->detach());
  run(from->detach());
}

TEST_P(BulkJob, WritesLargePiecesWhereItTakesOverDifferences) {
  test::MemoryDisk compressed;
  {
    std::unique_ptr<Child> from = open(source_);
    std::unique_ptr<Child> to = open_image();
    convert(*from, *to);
    run(to->detach());
    run(from->detach());
  }
  set_aside(compressed);
  std::unique_ptr<Child> old_backing = open_image(compressed);
  std::unique_ptr<Child> to = open_image();
  DifferenceRequest request;
  request.top = to.get();
  request.old_backing = old_backing.get();
  request.compressed = true;
  run(copy_differences(std::move(request)));
  expect_large_writes(*to);
  run(to->detach());
  run(old_backing->detach());
}

INSTANTIATE_TEST_SUITE_P(Content, BulkJob, testing::Bool(), [](const auto& content) {
  return std::string(content.param ? "SomeClustersDoNotShrink" : "AllClustersShrink");
});

// Compressed overwrites and discards at random. What the disk pointed to at the last flush, and
// nothing in memory points to any more, must not be written until the next flush is through.
class Quarantine : public HostWrites {
 protected:
  static constexpr std::uint64_t cluster = 4096;
  static constexpr std::uint64_t clusters = 256;

  void SetUp() override {
    make_image("4k", clusters * cluster, 8 << 20);
    model_.resize(clusters * cluster);
    on_write_ = [this](GuestRange range) {
      for (const HostRange& kept : quarantine_) {
        const bool hits =
            range.start.bytes() < kept.end().bytes() && kept.start.bytes() < range.end().bytes();
        if (hits) ++violations_;
      }
    };
  }

  Extent extent_of(Child& root, std::uint64_t number) {
    return run(root.node().driver().map({GuestOffset(number * cluster), cluster},
                                        MapMode::allocation_only));
  }
  // The bytes that surely belong to the cluster alone.
  void quarantine(const Extent& extent) {
    if (extent.kind == Extent::Kind::data && extent.host) {
      quarantine_.push_back({*extent.host, cluster});
    }
    if (extent.kind == Extent::Kind::compressed && extent.stored_length > 512) {
      quarantine_.push_back({*extent.host, extent.stored_length - 512});
    }
  }
  void change(Child& root) {
    const std::uint64_t number = random_() % clusters;
    const auto at = model_.begin() + static_cast<std::ptrdiff_t>(number * cluster);
    const Extent before = extent_of(root, number);
    if (random_() % 6 == 0) {
      run(root.discard({GuestOffset(number * cluster), cluster}));
      std::fill_n(at, cluster, std::byte{0});
    } else {
      std::vector<std::byte> bytes = half_noise(cluster, random_);
      std::fill_n(bytes.begin(), random_() % cluster, std::byte{3});
      WriteFlags flags;
      flags.compressed = random_() % 8 != 0;
      run(root.write(GuestOffset(number * cluster), ConstIoVec(std::span(bytes)), flags));
      std::ranges::copy(bytes, at);
    }
    const Extent after = extent_of(root, number);
    if (after.host != before.host) quarantine(before);
  }
  void session(bool unlink_before_free) {
    std::unique_ptr<Child> root = open_image();
    dynamic_cast<Qcow2&>(root->node().driver()).order_rules().unlink_before_free =
        unlink_before_free;
    for (int round = 0; round < 6; ++round) {
      for (int i = 0; i < 40; ++i) change(*root);
      run(root->flush());
      quarantine_.clear();
      std::vector<std::byte> content(model_.size());
      run(root->read(GuestOffset(0), IoVec(std::span(content))));
      ASSERT_TRUE(content == model_);
    }
    run(root->detach());
    quarantine_.clear();
  }
  CheckResult check() {
    std::unique_ptr<Child> child = open(file_);
    Header header = Header::decode(std::span(file_.bytes).first(cluster), Header::Purpose::check);
    const CheckResult result = run(check_image(*child, header, {}));
    run(child->detach());
    return result;
  }

  std::mt19937_64 random_{3};
  std::vector<std::byte> model_;
  std::vector<HostRange> quarantine_;
  unsigned violations_ = 0;
};

TEST_F(Quarantine, NoByteInItIsEverReused) {
  for (int number = 0; number < 6; ++number) {
    session(true);
    const CheckResult found = check();
    ASSERT_EQ(found.corruptions + found.leaks, 0u) << "session " << number;
  }
  EXPECT_EQ(violations_, 0u);
}

TEST_F(Quarantine, WithoutTheRuleThisTestWouldTell) {
  for (int number = 0; number < 3; ++number) session(false);
  EXPECT_GT(violations_, 0u);
}

}  // namespace
}  // namespace vise::qcow2
