// sleep, quit, help, abort, sigraise.
#include <fmt/format.h>

#include <chrono>
#include <csignal>
#include <cstdlib>

#include "tools/io/command.h"

namespace vise::tools {

namespace {

// A C integer, without the suffixes of sizes.
long plain_number(const std::string& text) {
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text.c_str(), &end, 0);
  if (text.empty() || *end != '\0' || errno != 0 || value < 0) {
    Call::fail(fmt::format("{} is not a valid number", text));
  }
  return value;
}

}  // namespace

Task<void> run_sleep(Call& call) {
  const long milliseconds = plain_number(call.arguments.operands.at(0));
  co_await EventLoop::current().sleep(std::chrono::milliseconds(milliseconds));
}

Task<void> run_quit(Call& call) {
  call.state.quit = true;
  co_return;
}

Task<void> run_help(Call& call) {
  if (call.arguments.operands.empty()) {
    for (const Command& command : commands()) print(usage_line(command));
    print("\nUse 'help commandname' for extended help.\n");
    co_return;
  }
  const std::string& name = call.arguments.operands[0];
  const Command* command = find_command(name);
  if (command == nullptr) Call::fail(fmt::format("command {} not found", name));
  print(usage_line(*command));
  if (!command->help.empty()) print(fmt::format("\n{}\n", command->help));
  if (!command->options.empty()) print(fmt::format("\n{}", describe_options(command->options)));
}

Task<void> run_abort(Call&) {
  std::abort();
  co_return;
}

Task<void> run_sigraise(Call& call) {
  const std::uint64_t number = call.size_operand(0);
  if (number > static_cast<std::uint64_t>(SIGRTMAX) || std::raise(static_cast<int>(number)) != 0) {
    Call::fail(fmt::format("There is no signal {}", number));
  }
  co_return;
}

}  // namespace vise::tools
