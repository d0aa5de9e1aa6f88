// Where vise-io gets its lines from when none are given with -c.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "tools/io/line_editor.h"
#include "vise/event_loop.h"

namespace vise::tools {

/// Lines of standard input, each behind a prompt. On a terminal they can be edited and recalled,
/// if the program was built with libedit and finds its module. Requests of `loop` go on while a
/// line is awaited.
class Prompt {
 public:
  Prompt(EventLoop& loop, std::string program_name);
  ~Prompt();
  Prompt(const Prompt&) = delete;

  /// Nothing at the end of input. Not to be called from inside the loop.
  std::optional<std::string> next_line();

 private:
  std::optional<std::string> read_plain_line();

  EventLoop& loop_;
  std::string text_;  // the prompt
  std::string pending_;
  bool at_end_ = false;
  std::unique_ptr<LineEditor> editor_;  // null: plain lines
};

}  // namespace vise::tools
