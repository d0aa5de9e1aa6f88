// Running one line: splitting it, finding the command, checking what it needs.
#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cstdio>
#include <utility>

#include "tools/io/command.h"
#include "vise/error.h"
#include "vise/options.h"

namespace vise::tools {

Task<void> IoState::open_image(ImageArguments arguments) {
  assert(image_ == nullptr);
  image_ = co_await session_.open(arguments);
  image_arguments_ = std::move(arguments);
}

Node& IoState::image_node() const {
  Node& top = image_->node();
  return image_arguments_.copy_on_read ? top.filtered_child()->node() : top;
}

Task<void> IoState::close_image() {
  co_await outstanding_.join();
  Child* leaving = std::exchange(image_, nullptr);
  if (leaving != nullptr) co_await session_.close(leaving);
}

std::uint64_t Call::size_operand(std::size_t index) const {
  return size_value(arguments.operands.at(index));
}

std::uint64_t Call::size_value(const std::string& text) {
  try {
    const std::uint64_t size = parse_size(text);
    if (size > INT64_MAX) throw Error(ERANGE, "argument too large");
    return size;
  } catch (const Error& error) {
    fail(fmt::format("Parsing error: {} -- {}",
                     error.code() == ERANGE
                         ? "argument too large"
                         : "non-numeric argument, or extraneous/unrecognized suffix",
                     text));
  }
}

std::string usage_line(const Command& command) {
  const std::string_view gap = command.arguments.empty() ? "" : " ";
  return fmt::format("{}{}{} -- {}\n", command.name, gap, command.arguments, command.summary);
}

namespace {

std::string expected_words(const Command& command) {
  if (command.most_words == UINT_MAX) {
    return fmt::format("at least {} arguments", command.least_words);
  }
  if (command.least_words == command.most_words) {
    return fmt::format("{} arguments", command.least_words);
  }
  return fmt::format("between {} and {} arguments", command.least_words, command.most_words);
}

// Nothing if the command may run, else the reason has been printed.
bool may_run(const IoState& state, const Command& command, std::size_t words) {
  if (words < command.least_words || words > command.most_words) {
    fmt::print(stderr, "bad argument count {} to {}, expected {}\n", words, command.name,
               expected_words(command));
    return false;
  }
  if (command.needs == Command::Needs::nothing) return true;
  if (state.image() == nullptr) {
    fmt::print(stderr, "no file open, try 'help open'\n");
    return false;
  }
  if (command.needs == Command::Needs::writable_image && state.image()->node().read_only()) {
    print_error(state.program(), "The image is open read-only");
    return false;
  }
  return true;
}

Task<void> call(IoState& state, const Command& command, std::vector<std::string> words) {
  Arguments arguments;
  if (command.options.empty()) {
    arguments.operands = std::move(words);
  } else {
    arguments = parse_arguments(command.name, words, command.options, "");
  }
  Call call{state, command, std::move(arguments)};
  co_await command.run(call);
}

}  // namespace

void Call::fail_with_usage() const {
  print(usage_line(command));
  throw CommandFailed();
}

void Call::fail(std::string_view line) {
  print(fmt::format("{}\n", line));
  throw CommandFailed();
}

std::vector<std::string> split_words(std::string_view line) {
  std::vector<std::string> words;
  std::size_t start = 0;
  while (start < line.size()) {
    const std::size_t end = std::min(line.find(' ', start), line.size());
    if (end > start) words.emplace_back(line.substr(start, end - start));
    start = end + 1;
  }
  return words;
}

Task<bool> run_line(IoState& state, std::string line) {
  std::vector<std::string> words = split_words(line);
  if (words.empty()) co_return true;
  const Command* command = find_command(words.front());
  if (command == nullptr) {
    fmt::print(stderr, "command \"{}\" not found\n", words.front());
    co_return false;
  }
  words.erase(words.begin());
  if (!may_run(state, *command, words.size())) co_return false;
  try {
    co_await call(state, *command, std::move(words));
    co_return true;
  } catch (const CommandFailed&) {
  } catch (const UsageError&) {
    print(usage_line(*command));
  } catch (const Error& error) {
    print_error(state.program(), error);
  }
  co_return false;
}

}  // namespace vise::tools
