// TLS of servers, as the rest of Vise sees it: what uses GnuTLS is in block/tls/, which is a module
// (util/module.h) unless it is linked in.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "util/tls_credentials.h"

namespace vise::tls {

/// What the socket must be ready for before a call is repeated. `nothing`: it has done its work.
enum class Wait { nothing, input, output };

/// One connection. No call blocks. Whatever fails throws Error and leaves it unusable.
class Session {
 public:
  virtual ~Session() = default;

  /// Goes on with the handshake, at the end of which the peer's certificate is looked at. Throws
  /// Error(EPROTO), or EACCES if that is not to be trusted.
  virtual Wait handshake() = 0;

  struct Moved {
    Wait wait;
    std::size_t bytes;
  };
  /// Up to all of `data`; no bytes and nothing to wait for: the peer has ended.
  virtual Moved receive(std::span<std::byte> data) = 0;
  /// The first bytes of `data`. Has it to wait, it must be called again with the same data.
  virtual Moved send(std::span<const std::byte> data) = 0;
  /// Tells the peer that nothing more comes, if the handshake is over; does not wait for it.
  virtual void say_goodbye() noexcept = 0;

  /// The distinguished name of the peer's certificate; empty without one.
  virtual std::string peer_name() const = 0;
};

/// What a server knows about itself, read from its files.
class ServerCredentials {
 public:
  virtual ~ServerCredentials() = default;
  /// On a connected, nonblocking socket, which the session uses but does not own. The credentials
  /// outlive it. Throws Error.
  virtual std::unique_ptr<Session> start(int fd) const = 0;
};

struct Library {
  /// Throws Error that names the file.
  std::unique_ptr<ServerCredentials> (*load)(const TlsCredentials::Options& options);
};

/// Loads the module when first called. Throws Error if that fails.
const Library& library();

}  // namespace vise::tls
