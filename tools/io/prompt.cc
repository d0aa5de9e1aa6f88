#include "tools/io/prompt.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "tools/common/output.h"
#include "vise-config.h"

#ifdef VISE_HAVE_LIBEDIT
#include <histedit.h>
#endif

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

#ifdef VISE_HAVE_LIBEDIT

class Prompt::Editor {
 public:
  Editor(EventLoop& loop, std::string& text)
      : loop_(loop),
        text_(text),
        line_(el_init("vise-io", stdin, stdout, stderr)),
        history_(history_init()) {
    HistEvent event;
    history(history_, &event, H_SETSIZE, 1000);
    el_set(line_, EL_CLIENTDATA, this);
    el_set(line_, EL_PROMPT, &Editor::prompt);
    el_set(line_, EL_EDITOR, "emacs");
    el_set(line_, EL_SIGNAL, 1);
    el_set(line_, EL_HIST, history, history_);
    el_set(line_, EL_GETCFN, &Editor::get_character);
  }
  ~Editor() {
    el_end(line_);
    history_end(history_);
  }
  Editor(const Editor&) = delete;

  std::optional<std::string> next_line() {
    int count = 0;
    const char* text = el_gets(line_, &count);
    if (text == nullptr || count <= 0) return std::nullopt;
    std::string line(text, static_cast<std::size_t>(count));
    if (line.back() == '\n') line.pop_back();
    HistEvent event;
    if (!line.empty()) history(history_, &event, H_ENTER, line.c_str());
    return line;
  }

 private:
  static Editor& of(EditLine* line) {
    void* data = nullptr;
    el_get(line, EL_CLIENTDATA, &data);
    return *static_cast<Editor*>(data);
  }
  static char* prompt(EditLine* line) { return of(line).text_.data(); }
  // The commands are ASCII; bytes of other characters pass one by one.
  static int get_character(EditLine* line, wchar_t* out) {
    char byte = 0;
    const ssize_t count = read_byte(of(line).loop_, byte);
    if (count == 1) *out = static_cast<wchar_t>(static_cast<unsigned char>(byte));
    return static_cast<int>(count);
  }

  EventLoop& loop_;
  std::string& text_;
  EditLine* line_;
  History* history_;
};

#else

class Prompt::Editor {
 public:
  Editor(EventLoop&, std::string&) {}
  std::optional<std::string> next_line() { return std::nullopt; }
};

#endif

Prompt::Prompt(EventLoop& loop, std::string program_name)
    : loop_(loop), text_(std::move(program_name) + "> ") {
#ifdef VISE_HAVE_LIBEDIT
  if (isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1) {
    editor_ = std::make_unique<Editor>(loop_, text_);
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
