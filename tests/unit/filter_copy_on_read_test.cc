// copy-on-read above a driver whose clusters come and go, with blkdebug between to hold the copy.
// (Backing images: iotests/filter/copy_on_read.py.)
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "memory_driver.h"
#include "vise/breakpoints.h"

namespace vise {
namespace {

using test::GraphTest;
using test::memory_options;
using test::MemoryDisk;

constexpr std::uint64_t cluster = 4096;

class FilterCopyOnRead : public GraphTest {
 protected:
  FilterCopyOnRead() {
    disk_.bytes.resize(8 * cluster - 1000);
    disk_.limits.cluster_size = cluster;
    disk_.on_request = [this](const char* request, GuestRange range) {
      if (std::string_view(request) == "flush") return;
      log_ += std::string(request) + " " + std::to_string(range.start.bytes()) + "+" +
              std::to_string(range.length) + "\n";
    };
  }

  std::unique_ptr<Child> open_filter(bool read_only = false) {
    Value::Dict debug;
    debug.set("driver", "blkdebug");
    debug.set("image", memory_options(disk_));
    Value::Dict options;
    options.set("driver", "copy-on-read");
    options.set("file", std::move(debug));
    return open(std::move(options), read_only);
  }
  std::vector<std::byte> read(Child& disk, std::uint64_t offset, std::uint64_t length) {
    std::vector<std::byte> bytes(length);
    run(disk.read(GuestOffset(offset), IoVec(std::span(bytes))));
    return bytes;
  }
  std::string take_log() { return std::exchange(log_, {}); }

  MemoryDisk disk_;
  std::string log_;
};

TEST_F(FilterCopyOnRead, WhatIsReadIsCopiedInWholeClusters) {
  auto root = open_filter();
  read(*root, cluster + 100, 10);
  EXPECT_EQ(take_log(), "read 4096+4096\nwrite 4096+4096\n");
  read(*root, cluster + 100, 10);
  EXPECT_EQ(take_log(), "read 4196+10\n");
  run(root->detach());
}

TEST_F(FilterCopyOnRead, WhatIsThereIsNotCopied) {
  auto root = open_filter();
  const std::vector<std::byte> bytes(cluster, std::byte{7});
  run(root->write(GuestOffset(cluster), ConstIoVec(std::span(bytes))));
  take_log();
  const auto all = read(*root, 0, 3 * cluster);
  EXPECT_EQ(take_log(),
            "read 0+4096\nwrite 0+4096\nread 4096+4096\nread 8192+4096\nwrite 8192+4096\n");
  EXPECT_EQ(std::ranges::count(all, std::byte{7}), static_cast<std::ptrdiff_t>(cluster));
  run(root->detach());
}

TEST_F(FilterCopyOnRead, TheLastClusterMayBeAPartialOne) {
  auto root = open_filter();
  read(*root, 8 * cluster - 1010, 10);
  EXPECT_EQ(take_log(), "read 28672+3096\nwrite 28672+3096\n");
  run(root->detach());
}

TEST_F(FilterCopyOnRead, AFailedCopyDoesNotFailTheRead) {
  disk_.on_request = [](const char* request, GuestRange) {
    if (std::string_view(request) == "write") throw Error(ENOSPC, "full");
  };
  auto root = open_filter();
  read(*root, 0, 100);
  run(root->detach());
}

TEST_F(FilterCopyOnRead, AReadOnlyNodeOnlyReads) {
  auto root = open_filter(true);
  read(*root, 0, 100);
  EXPECT_EQ(take_log(), "read 0+100\n");
  run(root->detach());
}

TEST_F(FilterCopyOnRead, AWriteDuringACopyIsNotLost) {
  auto root = open_filter();
  auto& points = dynamic_cast<Breakpoints&>(root->node().filtered_child()->node().driver());
  points.add_breakpoint("cor_write", "copy");
  run([](Child& edge, Breakpoints& at, MemoryDisk& disk) -> Task<void> {
    std::vector<std::byte> read(512);
    const std::vector<std::byte> written(512, std::byte{9});
    TaskScope scope;
    scope.spawn(edge.read(GuestOffset(0), IoVec(std::span(read))));
    co_await at.wait_suspended("copy");
    scope.spawn(edge.write(GuestOffset(1024), ConstIoVec(std::span(written))));
    co_await EventLoop::current().yield();
    EXPECT_EQ(disk.writes, 0u);  // it waits for the copy
    at.resume("copy");
    co_await scope.join();
  }(*root, points, disk_));
  EXPECT_EQ(disk_.bytes[1024], std::byte{9});
  EXPECT_EQ(disk_.bytes[1023], std::byte{0});
  run(root->detach());
}

TEST_F(FilterCopyOnRead, OthersMayNotWritePastIt) {
  auto root = open_filter();
  Node& below = root->node().filtered_child()->node();
  const Permissions writing{Permission::write, Permissions::all()};
  int code = 0;
  failure(graph_.attach(nullptr, "other", EdgeRole::root, below.shared_from_this(), writing),
          &code);
  EXPECT_EQ(code, EPERM);
  run(root->detach());
}

TEST_F(FilterCopyOnRead, TheBottomMustBeAnImageBelow) {
  for (const auto& [name, text] :
       {std::pair("nix", "no node 'nix'"), std::pair("debug", "filter")}) {
    Value::Dict debug;
    debug.set("driver", "blkdebug");
    debug.set("node-name", "debug");
    debug.set("image", memory_options(disk_));
    OpenRequest request;
    request.options.set("driver", "copy-on-read");
    request.options.set("bottom", name);
    request.options.set("file", std::move(debug));
    int code = 0;
    const std::string error = failure(graph_.open_root(std::move(request)), &code);
    EXPECT_EQ(code, EINVAL);
    EXPECT_NE(error.find(text), std::string::npos) << error;
  }
}

}  // namespace
}  // namespace vise
