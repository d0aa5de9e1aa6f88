// What a program knows about itself and its peers for TLS: the objects tls-creds-x509 and
// tls-creds-psk, and authz-simple.
#pragma once

#include <memory>
#include <string>

#include "vise/objects.h"

namespace vise {

namespace tls {
class ServerCredentials;
class Session;
}  // namespace tls

class TlsCredentials final : public Object {
 public:
  enum class Kind { x509, psk };
  enum class Endpoint { client, server };

  struct Options {
    Kind kind = Kind::x509;
    Endpoint endpoint = Endpoint::client;
    std::string folder;        // that holds the files
    bool verify_peer = true;   // x509
    bool sanity_check = true;  // x509: refuse certificates whose time is not now
    std::string priority;      // in GnuTLS's notation; empty: NORMAL
    std::string username;      // psk, clients; empty: "qemu"

    /// Of one of the files in the folder.
    std::string path(const char* file) const { return folder + "/" + file; }
  };

  /// Loads the files, if it is for a server: a client's are read when it connects. Throws Error
  /// that names the file.
  explicit TlsCredentials(Options options);
  ~TlsCredentials() override;

  const Options& options() const { return options_; }
  std::string path(const char* file) const { return options_.path(file); }

  /// A session of a server (util/tls.h) on a connected, nonblocking socket, which stays the
  /// caller's. The credentials outlive it. Throws Error.
  std::unique_ptr<tls::Session> start_session(int fd) const;

 private:
  Options options_;
  std::unique_ptr<tls::ServerCredentials> loaded_;  // null for clients
};

/// Throws Error that names the file, since GnuTLS does not say which one it could not open.
void require_readable(const std::string& file);

/// Who may use a server: the object authz-simple.
class SimpleAuthorization final : public Object {
 public:
  explicit SimpleAuthorization(std::string identity) : identity_(std::move(identity)) {}
  /// `name`: the distinguished name of a certificate.
  bool allows(const std::string& name) const { return name == identity_; }

 private:
  std::string identity_;
};

std::shared_ptr<Object> make_tls_creds_x509(const Value::Dict& options);
std::shared_ptr<Object> make_tls_creds_psk(const Value::Dict& options);
std::shared_ptr<Object> make_authz_simple(const Value::Dict& options);

/// The credentials with that id. Throws Error(ENOENT) if there is none, EINVAL if the object is
/// something else or for the other endpoint.
std::shared_ptr<TlsCredentials> find_tls_credentials(const ObjectTable& objects,
                                                     const std::string& id,
                                                     TlsCredentials::Endpoint endpoint);
/// The same for an object authz-simple.
std::shared_ptr<SimpleAuthorization> find_authorization(const ObjectTable& objects,
                                                        const std::string& id);

}  // namespace vise
