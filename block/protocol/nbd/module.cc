// What the code that uses libnbd shows of itself, to whom depends on how Vise is built.
#include "util/module.h"
#include "protocol/nbd/client.h"
#include "protocol/nbd/list.h"
#include "protocol/nbd/nbd.h"
#include "vise-config.h"

namespace {

constexpr vise::nbd::Client client = {&vise::nbd_driver, vise::nbd::list_exports};

}  // namespace

#ifdef VISE_PLUGINS
extern "C" const vise::Module* vise_module() {
  static constexpr vise::Module module = {VISE_VERSION, &client};
  return &module;
}
#else
const vise::nbd::Client& vise::nbd::client() { return ::client; }
#endif
