// Where libedit is not linked in.
#include "tools/io/line_editor.h"
#include "util/module.h"

namespace vise::tools {

const LineEditing& line_editing() {
  return *static_cast<const LineEditing*>(load_module("line_editor").interface);
}

}  // namespace vise::tools
