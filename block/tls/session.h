// One TLS connection of a server, by GnuTLS.
#pragma once

#include <gnutls/gnutls.h>

#include "util/tls.h"

namespace vise::tls {

class GnutlsSession final : public Session {
 public:
  enum class Peer { verified, taken_as_it_is };

  /// `fd` stays the caller's. Throws Error.
  GnutlsSession(int fd, Peer peer);
  GnutlsSession(const GnutlsSession&) = delete;
  ~GnutlsSession() override;

  gnutls_session_t handle() { return session_; }

  Wait handshake() override;
  Moved receive(std::span<std::byte> data) override;
  Moved send(std::span<const std::byte> data) override;
  void say_goodbye() noexcept override;
  std::string peer_name() const override;

 private:
  void verify() const;

  gnutls_session_t session_ = nullptr;
  const Peer peer_;
  bool established_ = false;
};

}  // namespace vise::tls
