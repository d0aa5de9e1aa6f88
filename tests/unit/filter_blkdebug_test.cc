// blkdebug: rules, the file they come from, faults and pauses of requests.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "graph/file_names.h"
#include "memory_driver.h"
#include "temporary_file.h"
#include "vise/breakpoints.h"

namespace vise {
namespace {

using test::GraphTest;
using test::memory_options;
using test::MemoryDisk;

class FilterBlkdebug : public GraphTest {
 protected:
  FilterBlkdebug() {
    disk_.bytes.resize(65536);
    disk_.limits.can_zero = true;
    disk_.limits.can_discard = true;
  }

  std::unique_ptr<Child> open_filter(Value::Dict options = {}) {
    options.set("driver", "blkdebug");
    options.set("image", memory_options(disk_));
    return open(std::move(options));
  }

  static Value rule(std::vector<std::pair<const char*, Value>> members) {
    Value::Dict rule;
    for (auto& [name, value] : members) rule.set(name, std::move(value));
    return rule;
  }

  std::unique_ptr<Child> open_with(Value inject_error, std::vector<Value> set_state = {}) {
    Value::Dict options;
    options.set("inject-error", Value::List{std::move(inject_error)});
    options.set("set-state", Value::List(std::move(set_state)));
    return open_filter(std::move(options));
  }

  // The errno of a request of 512 bytes at `offset`; 0 if it goes well.
  int read(Child& disk, std::uint64_t offset) {
    std::vector<std::byte> bytes(512);
    int code = 0;
    failure(disk.read(GuestOffset(offset), IoVec(std::span(bytes))), &code);
    return code;
  }
  int write(Child& disk, std::uint64_t offset) {
    const std::vector<std::byte> bytes(512, std::byte{1});
    int code = 0;
    failure(disk.write(GuestOffset(offset), ConstIoVec(std::span(bytes))), &code);
    return code;
  }
  int code_of(Task<void> task) {
    int code = 0;
    failure(std::move(task), &code);
    return code;
  }

  static Breakpoints& breakpoints(Child& root) {
    return dynamic_cast<Breakpoints&>(root.node().driver());
  }

  MemoryDisk disk_;
};

TEST_F(FilterBlkdebug, RulesOnNoneAreInForceFromTheStart) {
  auto root = open_with(rule({{"event", "none"}, {"errno", ENOSPC}}));
  EXPECT_EQ(read(*root, 0), ENOSPC);
  EXPECT_EQ(write(*root, 0), ENOSPC);
  EXPECT_EQ(code_of(root->write_zeroes({GuestOffset(0), 512})), ENOSPC);
  EXPECT_EQ(code_of(root->discard({GuestOffset(0), 512})), ENOSPC);
  EXPECT_EQ(code_of(root->flush()), ENOSPC);
  run(root->map({GuestOffset(0), 512}));  // block-status only if it is asked for
  code_of(root->detach());                // flushes
}

TEST_F(FilterBlkdebug, AnEventArmsARuleForAllRequestsToCome) {
  auto root = open_with(rule({{"event", "l2_load"}}));
  EXPECT_EQ(read(*root, 0), 0);
  run([](Child& edge) -> Task<void> { co_await edge.event(Event::l1_update); }(*root));
  EXPECT_EQ(read(*root, 0), 0);
  run([](Child& edge) -> Task<void> { co_await edge.event(Event::l2_load); }(*root));
  EXPECT_EQ(read(*root, 0), EIO);
  EXPECT_EQ(read(*root, 512), EIO);
  code_of(root->detach());
}

TEST_F(FilterBlkdebug, OnceIsOnce) {
  auto root = open_with(rule({{"event", "none"}, {"once", true}, {"immediately", true}}));
  EXPECT_EQ(read(*root, 0), EIO);
  EXPECT_EQ(read(*root, 0), 0);
  run(root->detach());
}

TEST_F(FilterBlkdebug, ASectorIsHitByRequestsThatTouchIt) {
  auto root = open_with(rule({{"event", "none"}, {"sector", 3}}));
  EXPECT_EQ(read(*root, 512), 0);
  EXPECT_EQ(read(*root, 1025), EIO);  // up to byte 1536
  EXPECT_EQ(read(*root, 2047), EIO);
  EXPECT_EQ(read(*root, 2048), 0);
  run(root->detach());  // a flush has no sector
}

TEST_F(FilterBlkdebug, AKindOfRequestLeavesTheOthersAlone) {
  auto root = open_with(rule({{"event", "none"}, {"iotype", "write-zeroes"}}));
  EXPECT_EQ(read(*root, 0), 0);
  EXPECT_EQ(write(*root, 0), 0);
  EXPECT_EQ(code_of(root->write_zeroes({GuestOffset(0), 512})), EIO);
  run(root->detach());
  root = open_with(rule({{"event", "none"}, {"iotype", "block-status"}}));
  int code = 0;
  failure(root->map({GuestOffset(0), 512}), &code);
  EXPECT_EQ(code, EIO);
  run(root->detach());
}

TEST_F(FilterBlkdebug, TheStateSaysWhichWriteFails) {
  // Fails the third write: its event comes in state 3.
  const auto step = [](int from) {
    return rule({{"event", "pwritev"}, {"state", from}, {"new_state", from + 1}});
  };
  auto root =
      open_with(rule({{"event", "pwritev"}, {"state", 3}, {"once", true}, {"iotype", "write"}}),
                {step(1), step(2), step(3)});
  std::vector<int> codes;
  for (int i = 0; i < 5; ++i) codes.push_back(write(*root, 0));
  EXPECT_EQ(codes, (std::vector<int>{0, 0, EIO, 0, 0}));
  run(root->detach());
}

TEST_F(FilterBlkdebug, LimitsAreForcedUponRequests) {
  Value::Dict options;
  options.set("align", 4096);
  options.set("max-transfer", "8k");
  options.set("opt-write-zero", 8192);
  options.set("max-discard", 16384);
  auto root = open_filter(std::move(options));
  EXPECT_EQ(root->limits().request_alignment, 4096u);
  EXPECT_EQ(root->limits().max_transfer, 8192u);
  EXPECT_EQ(root->limits().zero_alignment, 8192u);
  EXPECT_EQ(root->limits().max_discard, 16384u);
  EXPECT_EQ(write(*root, 100), 0);
  EXPECT_EQ(disk_.reads, 1u);  // padded
  run(root->discard({GuestOffset(0), 32768}));
  EXPECT_EQ(disk_.discards, 2u);
  run(root->detach());
}

TEST_F(FilterBlkdebug, ImpossibleLimitsAreRefused) {
  const std::pair<const char*, int> bad[] = {
      {"align", 3}, {"max-transfer", 5000}, {"opt-write-zero", 5000}, {"max-discard", 1}};
  for (const auto& [name, value] : bad) {
    OpenRequest request;
    request.options.set("driver", "blkdebug");
    request.options.set("align", 4096);
    request.options.set(name, value);
    request.options.set("image", memory_options(disk_));
    int code = 0;
    const std::string text = failure(graph_.open_root(std::move(request)), &code);
    EXPECT_EQ(code, EINVAL);
    EXPECT_NE(text.find(name), std::string::npos) << text;
  }
}

TEST_F(FilterBlkdebug, ABreakpointHoldsOneRequestUntilItIsResumed) {
  auto root = open_filter();
  breakpoints(*root).add_breakpoint("pwritev", "A");
  int finished = 0;
  const auto writer = [](Child& edge, int& count) -> Task<void> {
    const std::vector<std::byte> bytes(512);
    co_await edge.write(GuestOffset(0), ConstIoVec(std::span(bytes)));
    ++count;
  };
  run([](Child& edge, Breakpoints& points, auto write, int& count) -> Task<void> {
    TaskScope scope;
    scope.spawn(write(edge, count));
    co_await points.wait_suspended("A");
    EXPECT_EQ(count, 0);
    co_await write(edge, count);  // another one passes
    EXPECT_EQ(count, 1);
    points.resume("A");
    co_await scope.join();
  }(*root, breakpoints(*root), writer, finished));
  EXPECT_EQ(finished, 2);
  run(root->detach());
}

TEST_F(FilterBlkdebug, RemovingABreakpointResumesItsRequests) {
  auto root = open_filter();
  Breakpoints& points = breakpoints(*root);
  points.add_breakpoint("pwritev", "A");
  points.remove_breakpoint("A");
  EXPECT_EQ(write(*root, 0), 0);

  points.add_breakpoint("pwritev", "A");
  points.add_breakpoint("pwritev_done", "A");
  run([](Child& edge, Breakpoints& at) -> Task<void> {
    const std::vector<std::byte> bytes(512);
    TaskScope scope;
    scope.spawn(edge.write(GuestOffset(0), ConstIoVec(std::span(bytes))));
    co_await at.wait_suspended("A");
    at.remove_breakpoint("A");
    co_await scope.join();
  }(*root, points));
  for (const auto& wrong : {+[](Breakpoints& at) { at.remove_breakpoint("A"); },
                            +[](Breakpoints& at) { at.resume("A"); },
                            +[](Breakpoints& at) { at.add_breakpoint("nothing", "A"); }}) {
    try {
      wrong(points);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ENOENT);
    }
  }
  run(root->detach());
}

TEST_F(FilterBlkdebug, PaddingIsToldStepByStep) {
  Value::Dict options;
  options.set("align", 4096);
  auto root = open_filter(std::move(options));
  Breakpoints& points = breakpoints(*root);
  for (const char* event : {"pwritev_rmw_head", "pwritev_rmw_after_head", "pwritev_rmw_tail",
                            "pwritev_rmw_after_tail", "pwritev", "pwritev_done"}) {
    points.add_breakpoint(event, event);
    run([](Child& edge, Breakpoints& at, std::string_view tag) -> Task<void> {
      const std::vector<std::byte> bytes(512);
      TaskScope scope;
      scope.spawn(edge.write(GuestOffset(100), ConstIoVec(std::span(bytes))));
      co_await at.wait_suspended(tag);
      at.resume(tag);
      co_await scope.join();
    }(*root, points, event));
  }
  run(root->detach());
}

TEST_F(FilterBlkdebug, RulesComeFromAFile) {
  TemporaryFile file;
  file.set_content(
      "# a comment\n\n[inject-error]\nevent = \"none\"\nerrno = \"28\"\n sector=\"1\" \n"
      "[set-state]\nevent = \"l2_load\"\nnew_state = \"2\"\n");
  Value::Dict options;
  options.set("config", file.path());
  auto root = open_filter(std::move(options));
  EXPECT_EQ(read(*root, 0), 0);
  EXPECT_EQ(read(*root, 512), ENOSPC);
  run(root->detach());
}

TEST_F(FilterBlkdebug, WrongFilesAreRefusedByName) {
  struct Case {
    const char* content;
    const char* complaint;
  };
  const Case cases[] = {{"[foo]\n", "line 1: unknown section '[foo]'"},
                        {"[inject-error\n", "line 1: unknown section"},
                        {"event = \"none\"\n", "line 1: there is no section"},
                        {"[inject-error]\nevent\n", "line 2: 'event' must be"},
                        {"[inject-error]\nevent = none\n", "line 2: 'event = none' must be"},
                        {"[inject-error]\nevent = \"a\" \"b\"\n", "line 2"},
                        {"[set-state]\nstate = \"1\"\nstate = \"2\"\n", "line 3: key 'state'"},
                        {"[inject-error]\nevent = \"nix\"\n", "'nix'"},
                        {"[inject-error]\nerrno = \"5\"\n", "event' is missing"},
                        {"[inject-error]\nevent = \"none\"\nerrno = \"x\"\n", "errno"},
                        {"[inject-error]\nevent = \"none\"\nerrno = \"-5\"\n", "errno"},
                        {"[inject-error]\nevent = \"none\"\nsector = \"-2\"\n", "sector"},
                        {"[inject-error]\nevent = \"none\"\nfoo = \"1\"\n", "foo"}};
  for (const auto& [content, complaint] : cases) {
    TemporaryFile file;
    file.set_content(content);
    OpenRequest request;
    request.options.set("driver", "blkdebug");
    request.options.set("config", file.path());
    request.options.set("image", memory_options(disk_));
    int code = 0;
    const std::string text = failure(graph_.open_root(std::move(request)), &code);
    EXPECT_EQ(code, EINVAL) << content;
    EXPECT_NE(text.find(complaint), std::string::npos) << text;
    EXPECT_NE(text.find(file.path()), std::string::npos) << text;
  }
}

TEST_F(FilterBlkdebug, FileNamesNameConfigurationAndImage) {
  const Value::Dict options = protocol_options("blkdebug:a/b.conf:file:c:d", context_.drivers());
  EXPECT_EQ(options.find("driver")->as_string(), "blkdebug");
  EXPECT_EQ(options.find("config")->as_string(), "a/b.conf");
  EXPECT_EQ(options.find("image")->as_dict().find("filename")->as_string(), "c:d");
  EXPECT_FALSE(protocol_options("blkdebug::c", context_.drivers()).contains("config"));
  EXPECT_THROW(protocol_options("blkdebug:c", context_.drivers()), Error);
  EXPECT_THROW(protocol_options("blkdebug:c:", context_.drivers()), Error);
}

TEST_F(FilterBlkdebug, TheFileNameIsPrintedBack) {
  TemporaryFile file;
  file.set_content(std::string(1024, 'x'));
  const std::string name = "blkdebug::" + file.path();
  for (const char* format : {"raw", ""}) {
    OpenRequest request;
    request.filename = name;
    request.format = format;
    auto root = run(graph_.open_root(std::move(request)));
    EXPECT_EQ(root->node().filename(), name);
    run(root->detach());
  }
}

TEST_F(FilterBlkdebug, AGrowingFileBelowGrows) {
  TemporaryFile file;
  file.set_content("");
  OpenRequest request;
  request.options.set("driver", "blkdebug");
  request.options.set("image.driver", "file");
  request.options.set("image.filename", file.path());
  auto root = run(graph_.open_root(std::move(request)));
  EXPECT_EQ(write(*root, 4096), 0);
  EXPECT_EQ(root->size(), 4608u);
  run(root->detach());
}

}  // namespace
}  // namespace vise
