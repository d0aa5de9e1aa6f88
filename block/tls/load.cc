// Where GnuTLS is not linked in.
#include "util/module.h"
#include "util/tls.h"

namespace vise::tls {

const Library& library() { return *static_cast<const Library*>(load_module("tls").interface); }

}  // namespace vise::tls
