// What the code that uses GnuTLS shows of itself, to whom depends on how Vise is built.
#include "util/module.h"
#include "tls/credentials.h"
#include "util/tls.h"
#include "vise-config.h"

namespace {

constexpr vise::tls::Library library = {vise::tls::GnutlsCredentials::load};

}  // namespace

#ifdef VISE_PLUGINS
extern "C" const vise::Module* vise_module() {
  static constexpr vise::Module module = {VISE_VERSION, &library};
  return &module;
}
#else
const vise::tls::Library& vise::tls::library() { return ::library; }
#endif
