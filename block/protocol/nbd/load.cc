// Where libnbd is not linked in.
#include "protocol/nbd/client.h"
#include "util/module.h"

namespace vise::nbd {

const Client& client() { return *static_cast<const Client*>(load_module("nbd").interface); }

}  // namespace vise::nbd
