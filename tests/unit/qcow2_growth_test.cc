// The host requests of an image that grows by many clusters: twice the clusters must cost about
// twice the requests and bytes, whatever the width of the refcounts.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "memory_driver.h"
#include "qcow2_test_support.h"

namespace vise::qcow2 {
namespace {

struct Cost {
  std::uint64_t requests = 0;
  std::uint64_t bytes = 0;  // read and written, besides the data themselves
};

class Growth : public test::GraphTest, public testing::WithParamInterface<const char*> {
 protected:
  // Fills the first `length` bytes of a new image, with a flush now and then.
  Cost cost_of(std::uint64_t length) {
    test::MemoryDisk disk;
    Value::Dict options;
    options.set("cluster_size", "512");
    options.set("refcount_bits", GetParam());
    disk.bytes = new_image(options, 16 << 20);
    disk.bytes.resize(40 << 20);
    Cost cost;
    disk.on_request = [&cost](const char*, GuestRange range) {
      ++cost.requests;
      cost.bytes += range.length;
    };
    Value::Dict node;
    node.set("driver", "qcow2");
    node.set("file", test::memory_options(disk));
    auto root = open(std::move(node));
    const std::vector<std::byte> data(step, std::byte{1});
    for (std::uint64_t at = 0; at < length; at += step) {
      run(root->write(GuestOffset(at), ConstIoVec(std::span(data))));
      if (at % (16 * step) == 0) run(root->flush());
    }
    run(root->detach());
    cost.bytes -= length;
    return cost;
  }

  static constexpr std::uint64_t step = 64 << 10;
};

TEST_P(Growth, CostsTwiceAsMuchForTwiceTheClusters) {
  const Cost once = cost_of(4 << 20);
  const Cost twice = cost_of(8 << 20);
  const Cost four_times = cost_of(16 << 20);
  EXPECT_LT(twice.requests, once.requests * 5 / 2) << once.requests;
  EXPECT_LT(four_times.requests, twice.requests * 5 / 2) << twice.requests;
  EXPECT_LT(twice.bytes, once.bytes * 5 / 2) << once.bytes;
  EXPECT_LT(four_times.bytes, twice.bytes * 5 / 2) << twice.bytes;
}

INSTANTIATE_TEST_SUITE_P(Qcow2, Growth, testing::Values("1", "2", "4", "8", "16", "32", "64"));

}  // namespace
}  // namespace vise::qcow2
