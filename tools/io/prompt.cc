#include "tools/io/prompt.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "tools/common/output.h"
#include "vise/error.h"

namespace vise::tools {

namespace {

// One byte of standard input, or the end (0) or an error (-1).
ssize_t read_byte(EventLoop& loop, char& byte) {
  pollfd ready{STDIN_FILENO, POLLIN, 0};
  // A regular file is always readable, and GLib need not be asked.
  if (poll(&ready, 1, 0) == 0) loop.run(loop.readable(STDIN_FILENO));
  for (;;) {
    const ssize_t count = read(STDIN_FILENO, &byte, 1);
    if (count >= 0 || errno != EINTR) return count;
  }
}

}  // namespace

Prompt::Prompt(EventLoop& loop, std::string program_name)
    : loop_(loop), text_(program_name + "> ") {
#ifdef VISE_HAVE_LIBEDIT
  if (isatty(STDIN_FILENO) != 1 || isatty(STDOUT_FILENO) != 1) return;
  try {
    editor_ = line_editing().start(text_, [&loop](char& byte) { return read_byte(loop, byte); });
  } catch (const Error& error) {
    print_warning({std::move(program_name)}, error.message());
  }
#endif
}

Prompt::~Prompt() = default;

std::optional<std::string> Prompt::next_line() {
  std::fflush(stdout);
  if (editor_) return editor_->next_line();
  print(text_);
  std::fflush(stdout);
  return read_plain_line();
}

std::optional<std::string> Prompt::read_plain_line() {
  for (;;) {
    const std::size_t newline = pending_.find('\n');
    if (newline != std::string::npos) {
      std::string line = pending_.substr(0, newline);
      pending_.erase(0, newline + 1);
      return line;
    }
    if (at_end_) {
      if (pending_.empty()) return std::nullopt;
      return std::exchange(pending_, {});
    }
    char byte = 0;
    if (read_byte(loop_, byte) <= 0) {
      at_end_ = true;
    } else {
      pending_ += byte;
    }
  }
}

}  // namespace vise::tools
