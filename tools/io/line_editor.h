// Lines that people edit and recall on a terminal. libedit does it, in a module (util/module.h)
// unless it is linked in: with -c nobody edits anything.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

namespace vise::tools {

class LineEditor {
 public:
  virtual ~LineEditor() = default;
  /// Shows the prompt and gives the line that was entered; nothing at the end of input.
  virtual std::optional<std::string> next_line() = 0;
};

struct LineEditing {
  /// On the terminal that is standard input and output. `read_byte` does what read(2) does with one
  /// byte of it.
  std::unique_ptr<LineEditor> (*start)(std::string prompt,
                                       std::function<ssize_t(char& byte)> read_byte);
};

/// Loads the module when first called. Throws Error if that fails. Not there in builds without
/// libedit.
const LineEditing& line_editing();

}  // namespace vise::tools
