// null-co and null-aio, opened as users open them.
#include <gtest/gtest.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <vector>

#include "vise/context.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise {
namespace {

class NullTest : public testing::TestWithParam<std::string> {
 protected:
  ~NullTest() override {
    if (root_) run(root_->detach());
    run(graph_.close_all());
  }
  template <class T>
  T run(Task<T> task) {
    return context_.loop().run(std::move(task));
  }
  Child& open(Value::Dict options) {
    options.set("driver", GetParam());
    OpenRequest request;
    request.options = std::move(options);
    root_ = run(graph_.open_root(std::move(request)));
    return *root_;
  }
  static Value::Dict with(std::string_view name, Value value) {
    Value::Dict options;
    options.set(name, std::move(value));
    return options;
  }

  Context context_;
  Graph graph_{context_};
  std::unique_ptr<Child> root_;
};

INSTANTIATE_TEST_SUITE_P(Drivers, NullTest, testing::Values("null-co", "null-aio"),
                         [](const auto& name) { return name.param == "null-co" ? "co" : "aio"; });

TEST_P(NullTest, HasOneGibibyteUnlessTold) {
  EXPECT_EQ(open({}).size(), 1u << 30);
  run(root_->detach());
  EXPECT_EQ(open(with("size", "64k")).size(), 65536u);
}

TEST_P(NullTest, AcceptsEveryRequestInside) {
  Child& root = open(with("size", "1M"));
  std::vector<std::byte> data(4096, std::byte{5});
  run(root.write(GuestOffset(100), std::span<const std::byte>(data)));
  run(root.read(GuestOffset(100), std::span(data)));
  run(root.write_zeroes({GuestOffset(0), 1 << 20}));
  run(root.discard({GuestOffset(0), 1 << 20}));
  run(root.flush());
  EXPECT_THROW(run(root.read(GuestOffset(1 << 20), std::span(data))), Error);
}

TEST_P(NullTest, ReadsZerosWhenTold) {
  Child& root = open(with("read-zeroes", true));
  std::vector<std::byte> data(4096, std::byte{5});
  run(root.read(GuestOffset(0), std::span(data)));
  EXPECT_EQ(data, std::vector<std::byte>(4096));
  EXPECT_EQ(run(root.map({GuestOffset(0), 4096})).kind, Extent::Kind::zero);
}

TEST_P(NullTest, TakesItsTimeWhenTold) {
  Child& root = open(with("latency-ns", 2'000'000));
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::byte> data(512);
  run(root.read(GuestOffset(0), std::span(data)));
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(2));
}

TEST_P(NullTest, RefusesOptionsItDoesNotKnow) {
  try {
    open(with("read-zeros", true));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), EINVAL);
    EXPECT_NE(error.message().find("read-zeros"), std::string::npos) << error.message();
  }
}

}  // namespace
}  // namespace vise
