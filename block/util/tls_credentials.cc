#include "util/tls_credentials.h"

#include <fmt/format.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <fstream>
#include <iterator>
#include <utility>

#include "util/driver_options.h"
#include "vise/error.h"

namespace vise {

namespace {

[[noreturn]] void fail(const std::string& file, int code) {
  throw Error(EINVAL, fmt::format("TLS credentials '{}': {}", file, gnutls_strerror(code)));
}

// GnuTLS does not say which file it could not open.
void require_readable(const std::string& file) {
  if (::access(file.c_str(), R_OK) == 0) return;
  throw Error::system_error(errno, fmt::format("TLS credentials '{}'", file));
}

void check_time(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  gnutls_x509_crt_t certificate = nullptr;
  gnutls_x509_crt_init(&certificate);
  const gnutls_datum_t data{reinterpret_cast<unsigned char*>(text.data()),
                            static_cast<unsigned>(text.size())};
  const int status = gnutls_x509_crt_import(certificate, &data, GNUTLS_X509_FMT_PEM);
  const std::time_t begin = gnutls_x509_crt_get_activation_time(certificate);
  const std::time_t end = gnutls_x509_crt_get_expiration_time(certificate);
  gnutls_x509_crt_deinit(certificate);
  if (status < 0) fail(file, status);
  const std::time_t now = std::time(nullptr);
  if (now < begin || now > end) {
    throw Error(EINVAL, fmt::format("TLS credentials '{}': the certificate {}", file,
                                    now < begin ? "is not valid yet" : "has expired"));
  }
}

}  // namespace

struct TlsCredentials::Loaded {
  gnutls_certificate_credentials_t certificates = nullptr;
  gnutls_psk_server_credentials_t keys = nullptr;
  ~Loaded() {
    if (certificates != nullptr) gnutls_certificate_free_credentials(certificates);
    if (keys != nullptr) gnutls_psk_free_server_credentials(keys);
  }
};

TlsCredentials::TlsCredentials(Options options)
    : options_(std::move(options)), loaded_(std::make_unique<Loaded>()) {
  if (options_.folder.empty()) throw Error(EINVAL, "TLS credentials: 'dir' is missing");
  if (options_.endpoint == Endpoint::client) {
    require_readable(path(options_.kind == Kind::x509 ? "ca-cert.pem" : "keys.psk"));
    return;
  }
  if (options_.kind == Kind::x509)
    load_certificates();
  else
    load_keys();
}

TlsCredentials::~TlsCredentials() = default;

void TlsCredentials::load_certificates() {
  gnutls_certificate_allocate_credentials(&loaded_->certificates);
  const std::string authority = path("ca-cert.pem");
  const std::string certificate = path("server-cert.pem");
  const std::string key = path("server-key.pem");
  const std::string revoked = path("ca-crl.pem");
  for (const std::string& file : {authority, certificate, key}) require_readable(file);
  int status = gnutls_certificate_set_x509_trust_file(loaded_->certificates, authority.c_str(),
                                                      GNUTLS_X509_FMT_PEM);
  if (status < 0) fail(authority, status);
  status = gnutls_certificate_set_x509_key_file(loaded_->certificates, certificate.c_str(),
                                                key.c_str(), GNUTLS_X509_FMT_PEM);
  if (status < 0) fail(certificate, status);
  if (::access(revoked.c_str(), F_OK) == 0) {
    status = gnutls_certificate_set_x509_crl_file(loaded_->certificates, revoked.c_str(),
                                                  GNUTLS_X509_FMT_PEM);
    if (status < 0) fail(revoked, status);
  }
  if (options_.sanity_check) {
    check_time(authority);
    check_time(certificate);
  }
}

void TlsCredentials::load_keys() {
  gnutls_psk_allocate_server_credentials(&loaded_->keys);
  const std::string file = path("keys.psk");
  require_readable(file);
  const int status = gnutls_psk_set_server_credentials_file(loaded_->keys, file.c_str());
  if (status < 0) fail(file, status);
}

void TlsCredentials::prepare(void* opaque) const {
  auto* session = static_cast<gnutls_session_t>(opaque);
  std::string priority = options_.priority.empty() ? "NORMAL" : options_.priority;
  priority += ":-VERS-TLS1.0:-VERS-TLS1.1";
  if (options_.kind == Kind::psk) priority += ":+ECDHE-PSK:+DHE-PSK:+PSK";
  const char* where = nullptr;
  const int status = gnutls_priority_set_direct(session, priority.c_str(), &where);
  if (status < 0) {
    throw Error(EINVAL, fmt::format("TLS priority '{}': {}", priority, gnutls_strerror(status)));
  }
  if (options_.kind == Kind::psk) {
    gnutls_credentials_set(session, GNUTLS_CRD_PSK, loaded_->keys);
    return;
  }
  gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, loaded_->certificates);
  gnutls_certificate_server_set_request(
      session, options_.verify_peer ? GNUTLS_CERT_REQUIRE : GNUTLS_CERT_IGNORE);
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
