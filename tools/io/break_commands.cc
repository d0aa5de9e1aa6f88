// break, remove_break, resume, wait_break: requests that wait at events of the blkdebug filter.
#include <fmt/format.h>

#include <cerrno>
#include <cstring>

#include "tools/io/command.h"
#include "vise/breakpoints.h"
#include "vise/child.h"
#include "vise/error.h"

namespace vise::tools {

namespace {

// The topmost blkdebug among the nodes that the data of the image passes. Throws Error(ENOTSUP).
Breakpoints& breakpoints_of(const Call& call) {
  const Node* node = &call.state.image()->node();
  while (node != nullptr) {
    if (auto* found = dynamic_cast<Breakpoints*>(&node->driver())) return *found;
    const Child* below = node->filtered_child();
    if (below == nullptr) below = node->child("file");
    node = below != nullptr ? &below->node() : nullptr;
  }
  throw Error(EOPNOTSUPP, "no node of the image knows breakpoints");
}

[[noreturn]] void fail_with(std::string_view what, const Error& error) {
  Call::fail(fmt::format("{}: {}", what, std::strerror(error.code())));
}

}  // namespace

Task<void> run_break(Call& call) {
  const auto& operands = call.arguments.operands;
  try {
    breakpoints_of(call).add_breakpoint(operands.at(0), operands.at(1));
  } catch (const Error& error) {
    fail_with("Could not set breakpoint", error);
  }
  co_return;
}

Task<void> run_remove_break(Call& call) {
  const std::string& tag = call.arguments.operands.at(0);
  try {
    breakpoints_of(call).remove_breakpoint(tag);
  } catch (const Error& error) {
    fail_with(fmt::format("Could not remove breakpoint {}", tag), error);
  }
  co_return;
}

Task<void> run_resume(Call& call) {
  try {
    breakpoints_of(call).resume(call.arguments.operands.at(0));
  } catch (const Error& error) {
    fail_with("Could not resume request", error);
  }
  // The request gets as far as it can before the next command.
  co_await EventLoop::current().yield();
}

Task<void> run_wait_break(Call& call) {
  co_await breakpoints_of(call).wait_suspended(call.arguments.operands.at(0));
}

}  // namespace vise::tools
