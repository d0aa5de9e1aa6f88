// Vise as a client of NBD servers: what the rest of it knows of the code that uses libnbd, which is
// a module (util/module.h) unless it is linked in.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "util/socket.h"
#include "util/tls_credentials.h"
#include "vise/driver.h"

namespace vise::nbd {

/// Which export of which server.
struct Target {
  SocketAddress address;
  std::string export_name;
  std::shared_ptr<TlsCredentials> tls;  // null: none
};

/// An export, as its server describes it to somebody who asks what there is.
struct ExportDescription {
  std::string name;
  std::string description;  // for people; empty if there is none
  std::string error;        // why the server tells no more; empty if it does
  std::uint64_t size = 0;   // bytes
  std::uint32_t flags = 0;  // of the transmission phase, as in the protocol
  // Block sizes in bytes; 0: the server does not say.
  std::uint32_t minimum = 0;
  std::uint32_t preferred = 0;
  std::uint32_t maximum = 0;
  std::vector<std::string> contexts;
};

struct Client {
  const DriverType* driver;
  /// What the server at the target's address has, whatever the target's export. Blocks; throws
  /// Error.
  std::vector<ExportDescription> (*list)(const Target& target);
};

/// Loads the module when first called. Throws Error if that fails.
const Client& client();

}  // namespace vise::nbd
