// The certificates or keys of a server, loaded by GnuTLS.
#pragma once

#include <gnutls/gnutls.h>

#include <memory>

#include "util/tls.h"

namespace vise::tls {

class GnutlsCredentials final : public ServerCredentials {
 public:
  /// Throws Error that names the file.
  static std::unique_ptr<ServerCredentials> load(const TlsCredentials::Options& options);
  ~GnutlsCredentials() override;

  std::unique_ptr<Session> start(int fd) const override;

 private:
  explicit GnutlsCredentials(TlsCredentials::Options options) : options_(std::move(options)) {}
  void load_certificates();
  void load_keys();
  void prepare(gnutls_session_t session) const;

  const TlsCredentials::Options options_;
  gnutls_certificate_credentials_t certificates_ = nullptr;
  gnutls_psk_server_credentials_t keys_ = nullptr;
};

}  // namespace vise::tls
