// Other options for open nodes: all of them or none, children exchanged, everything taken back.
#include <gtest/gtest.h>

#include <array>
#include <string_view>

#include "memory_driver.h"
#include "util/driver_options.h"
#include "vise/filter.h"
#include "vise/options.h"

namespace vise {
namespace {

using test::GraphTest;
using test::memory_options;
using test::MemoryDisk;

int commits = 0;

// A filter with an option "mood" that can be anything but "bad", and "fixed" that cannot change.
class MoodyDriver final : public Filter {
 public:
  using Filter::Filter;
  std::span<const std::string_view> changeable_options() const override {
    static constexpr std::string_view names[] = {"mood"};
    return names;
  }
  Task<std::function<void()>> prepare_reopen(OpenContext& context) override {
    OptionReader reader(context);
    if (reader.string("mood") == "bad") throw Error(EINVAL, "mood is bad");
    co_return [] { ++commits; };
  }
};

Task<std::unique_ptr<Driver>> open_moody(OpenContext& context) {
  OptionReader reader(context);
  reader.string("mood");
  reader.string("fixed");
  std::unique_ptr<Child> child =
      co_await context.open_child(std::string("file"), EdgeRole::filtered);
  co_return std::make_unique<MoodyDriver>(std::move(child));
}

const DriverType moody_driver = {.name = "moody", .kind = DriverKind::filter, .open = open_moody};

class GraphReopen : public GraphTest {
 protected:
  GraphReopen() {
    context_.drivers().add(moody_driver);
    commits = 0;
    for (MemoryDisk* disk : {&first_, &second_}) disk->bytes.resize(65536);
    small_.bytes.resize(4096);
    first_.bytes[0] = std::byte{1};
    second_.bytes[0] = std::byte{2};
  }

  std::shared_ptr<Node> add(Value::Dict options, const std::string& name) {
    OpenRequest request;
    request.options = std::move(options);
    request.options.set("node-name", name);
    std::shared_ptr<Node> node = run(graph_.open(std::move(request)));
    graph_.adopt(node);
    return node;
  }
  static Value::Dict moody(const std::string& file) {
    Value::Dict options;
    options.set("driver", "moody");
    options.set("file", file);
    options.set("mood", "good");
    options.set("fixed", "x");
    return options;
  }
  static NodeChange change(const std::shared_ptr<Node>& node, Value::Dict options,
                           NodeChange::Others others = NodeChange::Others::become_default) {
    return {.node = node, .options = std::move(options), .others = others};
  }
  /// The error; empty: there was none.
  std::string reopened(NodeChange one, std::optional<NodeChange> other = std::nullopt) {
    std::vector<NodeChange> changes;
    changes.push_back(std::move(one));
    if (other) changes.push_back(std::move(*other));
    return failure(graph_.reopen(std::move(changes)));
  }
  std::byte first_byte(Child& root) {
    std::array<std::byte, 512> data;
    run(root.read(GuestOffset(0), IoVec(std::span(data))));
    return data[0];
  }
  std::unique_ptr<Child> writer(const std::shared_ptr<Node>& node) {
    const Permissions wanted{PermissionSet(Permission::consistent_read) | Permission::write,
                             Permissions::all().without(Permission::resize)};
    return run(graph_.attach(nullptr, std::string("root"), EdgeRole::root, node, wanted));
  }

  MemoryDisk first_, second_, small_;
};

TEST_F(GraphReopen, GenericOptionsChangeWhileANodeIsOpen) {
  first_.limits.can_zero = true;
  auto root = open(first_);
  const std::vector<std::byte> zeros(4096);
  run(root->write(GuestOffset(0), ConstIoVec(std::span(zeros))));
  EXPECT_EQ(first_.zeroes, 0u);
  Value::Dict options;
  options.set("driver", "memory");  // as it is
  options.set("detect-zeroes", "on");
  options.set("cache.no-flush", true);
  EXPECT_EQ(reopened(change(root->shared_node(), options, NodeChange::Others::stay)), "");
  run(root->write(GuestOffset(0), ConstIoVec(std::span(zeros))));
  run(root->flush());
  EXPECT_EQ(first_.zeroes, 1u);
  EXPECT_EQ(first_.flushes, 0u);

  for (const auto& [name, value] :
       {std::pair("driver", "raw"), std::pair("nothing", "x"), std::pair("node-name", "a"),
        std::pair("detect-zeroes", "maybe"), std::pair("read-only", "on")}) {
    Value::Dict wrong;
    wrong.set("discard", "ignore");
    wrong.set(name, value);
    const std::string error =
        reopened(change(root->shared_node(), wrong, NodeChange::Others::stay));
    EXPECT_NE(error.find(name), std::string::npos) << error;
    EXPECT_TRUE(root->node().options().discard_unmap);
    EXPECT_FALSE(root->node().read_only());
  }
  run(root->detach());
}

TEST_F(GraphReopen, WhatIsNotGivenBecomesItsDefault) {
  add(memory_options(first_), "first");
  Value::Dict options = moody("first");
  options.set("detect-zeroes", "on");
  const auto node = add(options, "top");
  EXPECT_EQ(reopened(change(node, moody("first"))), "");
  EXPECT_EQ(node->options().detect_zeroes, DetectZeroes::off);
  EXPECT_EQ(commits, 1);
  Value::Dict incomplete = moody("first");
  incomplete.erase("fixed");
  EXPECT_NE(reopened(change(node, incomplete)).find("'fixed' cannot be reset"), std::string::npos);
  incomplete.set("fixed", "y");
  EXPECT_NE(reopened(change(node, incomplete)).find("Cannot change the option 'fixed'"),
            std::string::npos);
  EXPECT_EQ(commits, 1);
}

TEST_F(GraphReopen, AChildIsExchangedUnderItsUsers) {
  add(memory_options(first_), "first");
  add(memory_options(second_), "second");
  const auto top = add(moody("first"), "top");
  auto root = writer(top);
  EXPECT_EQ(first_byte(*root), std::byte{1});
  EXPECT_EQ(reopened(change(top, moody("second"))), "");
  EXPECT_EQ(first_byte(*root), std::byte{2});
  // A filter is slipped in, and taken out again, though it writes as well.
  const auto middle = add(moody("second"), "middle");
  EXPECT_EQ(reopened(change(top, moody("middle"))), "");
  EXPECT_EQ(&top->filtered_child()->node(), middle.get());
  EXPECT_TRUE(middle->filtered_child()->permissions().uses.has(Permission::write));
  EXPECT_EQ(reopened(change(top, moody("second"))), "");
  EXPECT_FALSE(middle->filtered_child()->permissions().uses.has(Permission::write));
  EXPECT_EQ(first_byte(*root), std::byte{2});
  run(root->detach());
}

TEST_F(GraphReopen, ALateRefusalTakesEverythingBack) {
  add(memory_options(first_), "first");
  const auto second = add(memory_options(second_), "second");
  add(memory_options(small_), "small");
  const auto top = add(moody("first"), "top");
  const auto other = add(moody("second"), "other");
  auto root = writer(top);
  Value::Dict bad = moody("second");
  bad.set("mood", "bad");
  Value::Dict second_options = memory_options(second_);
  second_options.set("read-only", true);
  Value::Dict cyclic = moody("top");
  for (const auto& [wrong, text] :
       {std::pair(change(other, bad), "mood is bad"),
        std::pair(change(other, moody("nope")), "no node named 'nope'")}) {
    EXPECT_NE(reopened(change(top, moody("second")), wrong).find(text), std::string::npos);
    EXPECT_EQ(&top->filtered_child()->node(), graph_.find("first"));
    EXPECT_TRUE(top->filtered_child()->permissions().uses.has(Permission::write));
    EXPECT_EQ(commits, 0);
  }
  EXPECT_NE(reopened(change(second, second_options), change(top, cyclic)).find("cycle"),
            std::string::npos);
  EXPECT_FALSE(second->read_only());
  EXPECT_NE(reopened(change(top, moody("small"))).find("the size of node 'top'"),
            std::string::npos);
  EXPECT_EQ(first_byte(*root), std::byte{1});
  const std::array<std::byte, 512> data{};
  run(root->write(GuestOffset(0), ConstIoVec(std::span(data))));
  EXPECT_EQ(first_.writes, 1u);
  run(root->detach());
}

}  // namespace
}  // namespace vise
