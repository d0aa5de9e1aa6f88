// Who may do what to a node beside whom; taking back what failed half-way; reopening; drain.
#include <gtest/gtest.h>

#include "memory_driver.h"
#include "vise/filter.h"

namespace vise {
namespace {

using test::GraphTest;
using test::memory_options;
using test::MemoryDisk;

constexpr PermissionSet read_only_use = Permission::consistent_read;
constexpr PermissionSet write_use = PermissionSet(Permission::consistent_read) | Permission::write;
constexpr PermissionSet format_use = write_use | Permission::resize;
constexpr PermissionSet format_shares =
    PermissionSet(Permission::consistent_read) | Permission::write_unchanged;

// A filter and a format that do nothing of their own, so that the defaults show.
class PlainDriver final : public Filter {
 public:
  PlainDriver(std::unique_ptr<Child> child, int* drains)
      : Filter(std::move(child)), drains_(drains) {}
  Task<void> drain() override {
    if (drains_ != nullptr) ++*drains_;
    co_return;
  }
  Task<void> reopen(bool read_only) override {
    if (!read_only) co_return;
    // What a format does last: it writes, which its child must still allow.
    const std::byte clean{1};
    if (child().role() == EdgeRole::storage) {
      co_await child().write(GuestOffset(0), ConstIoVec(&clean, 1));
    }
  }

 private:
  int* drains_;
};

template <EdgeRole role>
Task<std::unique_ptr<Driver>> open_plain(OpenContext& context) {
  std::unique_ptr<Child> child = co_await context.open_child(std::string("file"), role);
  int* drains = nullptr;
  if (const auto address = context.options().take("drains")) {
    drains = reinterpret_cast<int*>(static_cast<std::uintptr_t>(address->as_uint()));
  }
  co_return std::make_unique<PlainDriver>(std::move(child), drains);
}

const DriverType plain_filter = {
    .name = "plain-filter", .kind = DriverKind::filter, .open = open_plain<EdgeRole::filtered>};
const DriverType plain_format = {
    .name = "plain-format", .kind = DriverKind::format, .open = open_plain<EdgeRole::storage>};

class GraphPermissions : public GraphTest {
 protected:
  GraphPermissions() {
    context_.drivers().add(plain_filter);
    context_.drivers().add(plain_format);
    disk_.bytes.resize(65536);
    disk_.on_permissions = [this](Permissions permissions) { told_ = permissions; };
  }

  Value::Dict above(const char* driver, const char* name, int* drains = nullptr) {
    Value::Dict options;
    options.set("driver", driver);
    options.set("node-name", name);
    if (drains != nullptr) options.set("drains", reinterpret_cast<std::uintptr_t>(drains));
    Value::Dict file = memory_options(disk_);
    file.set("node-name", "disk");
    options.set("file", std::move(file));
    return options;
  }
  std::shared_ptr<Node> disk_node() { return graph_.find("disk")->shared_from_this(); }
  Task<std::unique_ptr<Child>> attach(const char* name, Permissions permissions) {
    return graph_.attach(nullptr, std::string(name), EdgeRole::root, disk_node(), permissions);
  }
  void release_held() {
    disk_.hold = false;
    disk_.held.wake_all();
  }

  MemoryDisk disk_;
  Permissions told_{{}, Permissions::all()};
};

TEST_F(GraphPermissions, AFormatClaimsItsFile) {
  auto root = open(above("plain-format", "top"));
  EXPECT_EQ(told_, (Permissions{format_use, format_shares}));
  int code = 0;
  const std::string text = failure(attach("intruder", {write_use, Permissions::all()}), &code);
  EXPECT_EQ(code, EPERM);
  EXPECT_NE(text.find("user 'intruder' needs permission to write, which 'file' of node 'top'"),
            std::string::npos)
      << text;
  EXPECT_EQ(disk_node()->parents().size(), 1u);
  EXPECT_EQ(told_, (Permissions{format_use, format_shares}));
  auto reader = run(attach("reader", {read_only_use, Permissions::all()}));
  run(reader->detach());
  run(root->detach());
}

TEST_F(GraphPermissions, AnExclusiveUserKeepsTheFormatOut) {
  auto root = open(memory_options(disk_));
  std::shared_ptr<Node> node = root->shared_node();
  run(root->set_permissions({read_only_use, read_only_use}));
  int code = 0;
  failure(graph_.attach(nullptr, std::string("second"), EdgeRole::root, node,
                        {write_use, Permissions::all()}),
          &code);
  EXPECT_EQ(code, EPERM);
  run(root->detach());
}

TEST_F(GraphPermissions, AFilterAsksForWhatItsParentsAsk) {
  auto root = open(above("plain-filter", "top"));
  EXPECT_EQ(told_, (Permissions{format_use, Permissions::all()}));
  run(root->set_permissions({read_only_use, Permissions::all()}));
  EXPECT_EQ(told_, (Permissions{read_only_use, Permissions::all()}));
  run(root->set_permissions({write_use, read_only_use}));
  EXPECT_EQ(told_, (Permissions{write_use, read_only_use}));
  run(root->detach());
}

TEST_F(GraphPermissions, AReadOnlyFormatOnlyReads) {
  auto root = open(above("plain-format", "top"), true);
  EXPECT_EQ(told_, (Permissions{read_only_use, format_shares}));
  run(root->detach());
}

TEST_F(GraphPermissions, ForceShareSharesEverything) {
  Value::Dict options = above("plain-format", "top");
  options.set("force-share", true);
  auto root = open(std::move(options), true);
  EXPECT_EQ(told_, (Permissions{read_only_use, Permissions::all()}));
  run(root->detach());
}

TEST_F(GraphPermissions, DetachingGivesUpWhatWasHeld) {
  auto first = open(memory_options(disk_));
  std::shared_ptr<Node> node = first->shared_node();
  auto second = run(graph_.attach(nullptr, std::string("second"), EdgeRole::root, node,
                                  {read_only_use, Permissions::all()}));
  EXPECT_EQ(told_.uses, format_use);
  run(first->detach());
  EXPECT_EQ(told_.uses, read_only_use);
  run(second->detach());
}

TEST_F(GraphPermissions, ADriversRefusalTakesEverythingBack) {
  auto root = open(above("plain-filter", "top"));
  run(root->set_permissions({read_only_use, Permissions::all()}));
  disk_.on_permissions = [this](Permissions permissions) {
    if (permissions.uses.has(Permission::write)) throw Error(EAGAIN, "Failed to get a lock");
    told_ = permissions;
  };
  int code = 0;
  failure(root->set_permissions({write_use, Permissions::all()}), &code);
  EXPECT_EQ(code, EAGAIN);
  EXPECT_EQ(root->permissions().uses, read_only_use);
  EXPECT_EQ(disk_node()->cumulative_permissions().uses, read_only_use);
  EXPECT_EQ(told_.uses, read_only_use);
  run(root->detach());
}

TEST_F(GraphPermissions, ARefusalWhileOpeningLeavesNothingOpen) {
  disk_.on_permissions = [](Permissions permissions) {
    if (permissions.uses.has(Permission::write)) throw Error(EAGAIN, "Failed to get a lock");
  };
  OpenRequest request;
  request.options = above("plain-format", "top");
  int code = 0;
  failure(graph_.open_root(std::move(request)), &code);
  EXPECT_EQ(code, EAGAIN);
  EXPECT_TRUE(graph_.nodes().empty());
  EXPECT_TRUE(disk_.closed);
}

TEST_F(GraphPermissions, AReadOnlyNodeCannotBeAttachedForWriting) {
  auto root = open(above("plain-format", "top"), true);
  int code = 0;
  const std::string text = failure(root->set_permissions({write_use, Permissions::all()}), &code);
  EXPECT_EQ(code, EPERM);
  EXPECT_NE(text.find("'top' is read-only"), std::string::npos) << text;
  run(root->detach());
}

TEST_F(GraphPermissions, ReopeningSwitchesTheNodesBelow) {
  auto root = open(above("plain-format", "top"));
  run(root->set_permissions({read_only_use, Permissions::all()}));
  run(graph_.reopen(root->node(), true));
  EXPECT_TRUE(root->node().read_only());
  EXPECT_TRUE(disk_node()->read_only());
  EXPECT_TRUE(disk_.read_only);
  EXPECT_EQ(disk_.bytes[0], std::byte{1});  // the format wrote while it still could
  EXPECT_EQ(told_, (Permissions{read_only_use, format_shares}));

  run(graph_.reopen(root->node(), false));
  EXPECT_FALSE(disk_node()->read_only());
  EXPECT_FALSE(disk_.read_only);
  EXPECT_EQ(told_, (Permissions{format_use, format_shares}));
  run(root->detach());
}

TEST_F(GraphPermissions, ReopeningReadOnlyUnderAWriterIsRefused) {
  auto root = open(above("plain-format", "top"));
  int code = 0;
  failure(graph_.reopen(root->node(), true), &code);
  EXPECT_EQ(code, EPERM);
  EXPECT_FALSE(root->node().read_only());
  EXPECT_FALSE(disk_node()->read_only());
  const std::byte data{5};
  run(root->write(GuestOffset(9), ConstIoVec(&data, 1)));
  EXPECT_EQ(disk_.bytes[9], data);
  run(root->detach());
}

TEST_F(GraphPermissions, AFailedReopenIsTakenBack) {
  auto root = open(above("plain-format", "top"), true);
  disk_.on_request = [](const char* request, GuestRange) {
    if (std::string_view(request) == "reopen rw") throw Error(EACCES, "no");
  };
  int code = 0;
  failure(graph_.reopen(root->node(), false), &code);
  EXPECT_EQ(code, EACCES);
  EXPECT_TRUE(root->node().read_only());
  EXPECT_TRUE(disk_node()->read_only());
  run(root->detach());
}

TEST_F(GraphPermissions, AnEdgeMayMoveToAnotherNode) {
  MemoryDisk other;
  other.bytes.assign(100, std::byte{9});
  auto root = open(memory_options(disk_));
  OpenRequest request;
  request.options = memory_options(other);
  std::shared_ptr<Node> node = run(graph_.open(std::move(request)));
  run(root->replace_node(node));
  EXPECT_TRUE(disk_.closed);
  EXPECT_EQ(root->size(), 100u);
  run(root->detach());
  EXPECT_TRUE(other.closed);
}

class GraphDrain : public GraphPermissions {
 protected:
  Task<void> write_one(Child& disk) {
    const std::byte data{1};
    co_await disk.write(GuestOffset(0), ConstIoVec(&data, 1));
  }
  void turn() { run(context_.loop().yield()); }
};

TEST_F(GraphDrain, WaitsForWhatIsInFlightAndHoldsBackTheRest) {
  int drains = 0;
  auto root = open(above("plain-filter", "top", &drains));
  disk_.hold = true;
  TaskScope scope;
  scope.spawn(write_one(*root));
  EXPECT_EQ(disk_.in_flight, 1u);
  bool drained = false;
  scope.spawn([](Node& node, bool& done) -> Task<void> {
    co_await node.drain_begin();
    done = true;
  }(root->node(), drained));
  turn();
  EXPECT_FALSE(drained);
  scope.spawn(write_one(*root));
  EXPECT_EQ(disk_.in_flight, 1u);
  release_held();
  while (!drained) turn();
  EXPECT_EQ(drains, 1);
  EXPECT_EQ(disk_.writes, 1u);
  EXPECT_EQ(root->node().requests_in_flight(), 0u);
  root->node().drain_end();
  run(scope.join());
  EXPECT_EQ(disk_.writes, 2u);
  run(root->detach());
}

TEST_F(GraphDrain, DrainingANodeHoldsBackTheRootsAboveIt) {
  auto root = open(above("plain-filter", "top"));
  const std::shared_ptr<Node> disk = disk_node();
  run(disk->drain_begin());
  run(disk->drain_begin());  // it nests
  TaskScope scope;
  scope.spawn(write_one(*root));
  disk->drain_end();
  turn();
  EXPECT_EQ(disk_.writes, 0u);
  disk->drain_end();
  run(scope.join());
  EXPECT_EQ(disk_.writes, 1u);
  run(root->detach());
}

TEST_F(GraphDrain, TravelsAlongNewEdges) {
  auto root = open(memory_options(disk_));
  const std::shared_ptr<Node> node = root->shared_node();
  run(node->drain_begin());
  auto second = run(graph_.attach(nullptr, std::string("second"), EdgeRole::root, node,
                                  {write_use, Permissions::all()}));
  TaskScope scope;
  scope.spawn(write_one(*second));
  EXPECT_EQ(disk_.writes, 0u);
  node->drain_end();
  run(scope.join());
  EXPECT_EQ(disk_.writes, 1u);
  run(second->detach());
  run(root->detach());
}

}  // namespace
}  // namespace vise
