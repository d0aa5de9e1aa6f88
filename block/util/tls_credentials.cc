#include "util/tls_credentials.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <utility>

#include "util/driver_options.h"
#include "util/tls.h"
#include "vise/error.h"

namespace vise {

void require_readable(const std::string& file) {
  if (::access(file.c_str(), R_OK) == 0) return;
  throw Error::system_error(errno, fmt::format("TLS credentials '{}'", file));
}

TlsCredentials::TlsCredentials(Options options) : options_(std::move(options)) {
  if (options_.folder.empty()) throw Error(EINVAL, "TLS credentials: 'dir' is missing");
  if (options_.endpoint == Endpoint::server)
    loaded_ = tls::library().load(options_);
  else
    require_readable(path(options_.kind == Kind::x509 ? "ca-cert.pem" : "keys.psk"));
}

TlsCredentials::~TlsCredentials() = default;

std::unique_ptr<tls::Session> TlsCredentials::start_session(int fd) const {
  assert(loaded_ != nullptr && "these are for a client");
  return loaded_->start(fd);
}

namespace {

template <class Given>
TlsCredentials::Options common_options(const Given& given) {
  TlsCredentials::Options options;
  options.folder = given.dir;
  options.verify_peer = given.verify_peer.value_or(true);
  options.priority = given.priority.value_or("");
  const auto endpoint = given.endpoint.value_or(qapi::QCryptoTLSCredsEndpoint::client);
  options.endpoint = endpoint == qapi::QCryptoTLSCredsEndpoint::server
                         ? TlsCredentials::Endpoint::server
                         : TlsCredentials::Endpoint::client;
  return options;
}

template <class Wanted>
std::shared_ptr<Wanted> find_object(const ObjectTable& objects, const std::string& id,
                                    std::string_view what) {
  const std::shared_ptr<Object> object = objects.find(id);
  if (object == nullptr) throw Error(ENOENT, fmt::format("There is no object '{}'", id));
  auto wanted = std::dynamic_pointer_cast<Wanted>(object);
  if (wanted == nullptr) throw Error(EINVAL, fmt::format("Object '{}' is no {}", id, what));
  return wanted;
}

}  // namespace

std::shared_ptr<Object> make_tls_creds_x509(const Value::Dict& options) {
  const auto given = read_value<qapi::TlsCredsX509Properties>(Value(options), ValueInput::options);
  TlsCredentials::Options result = common_options(given);
  result.kind = TlsCredentials::Kind::x509;
  result.sanity_check = given.sanity_check.value_or(true);
  return std::make_shared<TlsCredentials>(std::move(result));
}

std::shared_ptr<Object> make_tls_creds_psk(const Value::Dict& options) {
  const auto given = read_value<qapi::TlsCredsPskProperties>(Value(options), ValueInput::options);
  TlsCredentials::Options result = common_options(given);
  result.kind = TlsCredentials::Kind::psk;
  result.username = given.username.value_or("");
  if (!result.username.empty() && result.endpoint == TlsCredentials::Endpoint::server) {
    throw Error(EINVAL, "'username' of tls-creds-psk is for clients");
  }
  return std::make_shared<TlsCredentials>(std::move(result));
}

std::shared_ptr<Object> make_authz_simple(const Value::Dict& options) {
  const auto given = read_value<qapi::AuthZSimpleProperties>(Value(options), ValueInput::options);
  return std::make_shared<SimpleAuthorization>(given.identity);
}

std::shared_ptr<TlsCredentials> find_tls_credentials(const ObjectTable& objects,
                                                     const std::string& id,
                                                     TlsCredentials::Endpoint endpoint) {
  auto credentials = find_object<TlsCredentials>(objects, id, "set of TLS credentials");
  if (credentials->options().endpoint != endpoint) {
    const bool server = endpoint == TlsCredentials::Endpoint::server;
    throw Error(EINVAL, fmt::format("TLS credentials '{}' must have endpoint={}", id,
                                    server ? "server" : "client"));
  }
  return credentials;
}

std::shared_ptr<SimpleAuthorization> find_authorization(const ObjectTable& objects,
                                                        const std::string& id) {
  return find_object<SimpleAuthorization>(objects, id, "authz-simple");
}

}  // namespace vise
