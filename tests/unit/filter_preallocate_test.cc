// preallocate above a real file: what others see of its size, and what is left when it is closed.
#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "memory_driver.h"
#include "temporary_file.h"

namespace vise {
namespace {

constexpr std::uint64_t mib = 1u << 20;

class FilterPreallocate : public test::GraphTest {
 protected:
  FilterPreallocate() { file_.set_content(std::string(512, 'x')); }

  std::unique_ptr<Child> open_filter() {
    Value::Dict options;
    options.set("driver", "preallocate");
    options.set("prealloc-size", "4M");
    options.set("file.driver", "file");
    options.set("file.filename", file_.path());
    return open(std::move(options));
  }
  void write(Child& disk, std::uint64_t offset, std::size_t length) {
    const std::vector<std::byte> bytes(length, std::byte{7});
    run(disk.write(GuestOffset(offset), ConstIoVec(std::span(bytes))));
  }
  std::uint64_t file_size() const { return std::filesystem::file_size(file_.path()); }

  TemporaryFile file_;
};

TEST_F(FilterPreallocate, SpaceIsAddedInFrontAndCutOffInTheEnd) {
  auto root = open_filter();
  EXPECT_EQ(file_size(), 512u);
  write(*root, 512, 100);
  EXPECT_EQ(root->size(), 612u);
  EXPECT_EQ(file_size(), 5 * mib);
  write(*root, 612, mib);
  EXPECT_EQ(file_size(), 5 * mib);
  write(*root, 612 + 5 * mib, 1);  // with a gap
  EXPECT_EQ(file_size(), 10 * mib);
  std::vector<std::byte> bytes(4 * mib);
  run(root->read(GuestOffset(612 + mib), IoVec(std::span(bytes))));
  EXPECT_TRUE(is_zero(std::span<const std::byte>(bytes)));
  run(root->detach());
  EXPECT_EQ(file_size(), 613 + 5 * mib);
}

TEST_F(FilterPreallocate, ZerosInFrontNeedNotBeWritten) {
  auto root = open_filter();
  write(*root, 512, 1);
  run(root->write_zeroes({GuestOffset(513), mib}));
  EXPECT_EQ(root->size(), 513 + mib);
  run(root->write_zeroes({GuestOffset(0), 10}));
  std::vector<std::byte> bytes(513);
  run(root->read(GuestOffset(0), IoVec(std::span(bytes))));
  EXPECT_EQ(bytes[9], std::byte{0});
  EXPECT_EQ(bytes[10], std::byte{'x'});
  run(root->detach());
  EXPECT_EQ(file_size(), 513 + mib);
}

TEST_F(FilterPreallocate, TruncateSetsTheSizeItIsTold) {
  auto root = open_filter();
  write(*root, 512, 512);
  run(root->truncate(100));
  EXPECT_EQ(root->size(), 100u);
  EXPECT_EQ(file_size(), 100u);
  run(root->truncate(10000));
  EXPECT_EQ(root->size(), 10000u);
  write(*root, 10000, 1);
  EXPECT_EQ(file_size(), 5 * mib);
  run(root->set_permissions({Permission::consistent_read, Permissions::all()}));
  EXPECT_EQ(file_size(), 5 * mib);
  run(graph_.reopen(root->node(), true));
  EXPECT_EQ(file_size(), 10001u);
  run(root->detach());
  EXPECT_EQ(file_size(), 10001u);
}

TEST_F(FilterPreallocate, StepsThatMakeNoSenseAreRefused) {
  for (const auto& [name, value] :
       {std::pair("prealloc-align", "1000"), std::pair("prealloc-align", "0"),
        std::pair("prealloc-size", "8E")}) {
    OpenRequest request;
    request.options.set("driver", "preallocate");
    request.options.set(name, value);
    request.options.set("file.driver", "file");
    request.options.set("file.filename", file_.path());
    int code = 0;
    const std::string text = failure(graph_.open_root(std::move(request)), &code);
    EXPECT_NE(code, 0);
    EXPECT_NE(text.find(name), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace vise
