// blkverify: two disks that must stay the same.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "memory_driver.h"

namespace vise {
namespace {

using test::memory_options;
using test::MemoryDisk;

class FilterBlkverify : public test::GraphTest {
 protected:
  FilterBlkverify() {
    for (MemoryDisk* disk : {&test_, &raw_}) {
      disk->bytes.resize(65536);
      disk->limits.can_zero = true;
      disk->limits.can_discard = true;
    }
  }
  Value::Dict options() {
    Value::Dict options;
    options.set("driver", "blkverify");
    options.set("test", memory_options(test_));
    options.set("raw", memory_options(raw_));
    return options;
  }
  std::string read(Child& disk, std::uint64_t offset, std::uint64_t length, int* code = nullptr) {
    std::vector<std::byte> bytes(length);
    return failure(disk.read(GuestOffset(offset), IoVec(std::span(bytes))), code);
  }

  MemoryDisk test_;
  MemoryDisk raw_;
};

TEST_F(FilterBlkverify, WritesGoToBoth) {
  auto root = open(options());
  const std::vector<std::byte> bytes(100, std::byte{7});
  run(root->write(GuestOffset(50), ConstIoVec(std::span(bytes))));
  run(root->write_zeroes({GuestOffset(60), 10}));
  run(root->discard({GuestOffset(0), 4096}));
  EXPECT_TRUE(test_.bytes == raw_.bytes);
  EXPECT_EQ(raw_.bytes[149], std::byte{7});
  EXPECT_EQ(raw_.bytes[65], std::byte{0});
  EXPECT_EQ(test_.discards + raw_.discards, 0u);
  EXPECT_EQ(read(*root, 0, 65536), "");
  run(root->detach());
  EXPECT_GT(raw_.flushes, 0u);
}

TEST_F(FilterBlkverify, ADifferenceFailsTheReadAndIsNamed) {
  auto root = open(options());
  raw_.bytes[1234] = std::byte{5};
  int code = 0;
  const std::string text = read(*root, 1000, 1000, &code);
  EXPECT_EQ(code, EIO);
  EXPECT_NE(text.find("differ at offset 1234: 0x00, not 0x05"), std::string::npos) << text;
  EXPECT_EQ(read(*root, 0, 1000), "");
  run(root->detach());
}

TEST_F(FilterBlkverify, AnErrorOfOneAloneIsADifference) {
  auto root = open(options());
  test_.on_request = [](const char* request, GuestRange) {
    if (std::string_view(request) == "read") throw Error(ENOSPC, "full");
  };
  int code = 0;
  EXPECT_NE(read(*root, 0, 10, &code).find("says 'full', raw says 'no error'"), std::string::npos);
  EXPECT_EQ(code, EIO);
  raw_.on_request = test_.on_request;
  read(*root, 0, 10, &code);
  EXPECT_EQ(code, ENOSPC);
  run(root->detach());
}

TEST_F(FilterBlkverify, RawDataMustNotBeShorter) {
  raw_.bytes.resize(65535);
  OpenRequest request;
  request.options = options();
  int code = 0;
  failure(graph_.open_root(std::move(request)), &code);
  EXPECT_EQ(code, EINVAL);
}

}  // namespace
}  // namespace vise
