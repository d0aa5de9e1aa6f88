// With libedit.
#include "tools/io/line_editor.h"

#include <histedit.h>

#include <cstdio>
#include <utility>

#include "util/module.h"
#include "vise-config.h"

namespace vise::tools {

namespace {

class Editor final : public LineEditor {
 public:
  Editor(std::string prompt, std::function<ssize_t(char&)> read_byte)
      : prompt_(std::move(prompt)),
        read_byte_(std::move(read_byte)),
        line_(el_init("vise-io", stdin, stdout, stderr)),
        history_(history_init()) {
    HistEvent event;
    history(history_, &event, H_SETSIZE, 1000);
    el_set(line_, EL_CLIENTDATA, this);
    el_set(line_, EL_PROMPT, &Editor::show_prompt);
    el_set(line_, EL_EDITOR, "emacs");
    el_set(line_, EL_SIGNAL, 1);
    el_set(line_, EL_HIST, history, history_);
    el_set(line_, EL_GETCFN, &Editor::get_character);
  }
  ~Editor() override {
    el_end(line_);
    history_end(history_);
  }
  Editor(const Editor&) = delete;

  std::optional<std::string> next_line() override {
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
  static char* show_prompt(EditLine* line) { return of(line).prompt_.data(); }
  // The commands are ASCII; bytes of other characters pass one by one.
  static int get_character(EditLine* line, wchar_t* out) {
    char byte = 0;
    const ssize_t count = of(line).read_byte_(byte);
    if (count == 1) *out = static_cast<wchar_t>(static_cast<unsigned char>(byte));
    return static_cast<int>(count);
  }

  std::string prompt_;
  const std::function<ssize_t(char&)> read_byte_;
  EditLine* line_;
  History* history_;
};

std::unique_ptr<LineEditor> start(std::string prompt, std::function<ssize_t(char&)> read_byte) {
  return std::make_unique<Editor>(std::move(prompt), std::move(read_byte));
}

constexpr LineEditing editing = {start};

}  // namespace

#ifndef VISE_PLUGINS
const LineEditing& line_editing() { return editing; }
#endif

}  // namespace vise::tools

#ifdef VISE_PLUGINS
extern "C" const vise::Module* vise_module() {
  static constexpr vise::Module module = {VISE_VERSION, &vise::tools::editing};
  return &module;
}
#endif
