#include "tls/credentials.h"

#include <fmt/format.h>
#include <gnutls/x509.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <fstream>
#include <iterator>
#include <string>

#include "tls/session.h"
#include "vise/error.h"

namespace vise::tls {

namespace {

[[noreturn]] void fail(const std::string& file, int code) {
  throw Error(EINVAL, fmt::format("TLS credentials '{}': {}", file, gnutls_strerror(code)));
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

std::unique_ptr<ServerCredentials> GnutlsCredentials::load(const TlsCredentials::Options& options) {
  std::unique_ptr<GnutlsCredentials> credentials(new GnutlsCredentials(options));
  if (options.kind == TlsCredentials::Kind::x509)
    credentials->load_certificates();
  else
    credentials->load_keys();
  return credentials;
}

GnutlsCredentials::~GnutlsCredentials() {
  if (certificates_ != nullptr) gnutls_certificate_free_credentials(certificates_);
  if (keys_ != nullptr) gnutls_psk_free_server_credentials(keys_);
}

void GnutlsCredentials::load_certificates() {
  gnutls_certificate_allocate_credentials(&certificates_);
  const std::string authority = options_.path("ca-cert.pem");
  const std::string certificate = options_.path("server-cert.pem");
  const std::string key = options_.path("server-key.pem");
  const std::string revoked = options_.path("ca-crl.pem");
  for (const std::string& file : {authority, certificate, key}) require_readable(file);
  int status =
      gnutls_certificate_set_x509_trust_file(certificates_, authority.c_str(), GNUTLS_X509_FMT_PEM);
  if (status < 0) fail(authority, status);
  status = gnutls_certificate_set_x509_key_file(certificates_, certificate.c_str(), key.c_str(),
                                                GNUTLS_X509_FMT_PEM);
  if (status < 0) fail(certificate, status);
  if (::access(revoked.c_str(), F_OK) == 0) {
    status =
        gnutls_certificate_set_x509_crl_file(certificates_, revoked.c_str(), GNUTLS_X509_FMT_PEM);
    if (status < 0) fail(revoked, status);
  }
  if (options_.sanity_check) {
    check_time(authority);
    check_time(certificate);
  }
}

void GnutlsCredentials::load_keys() {
  gnutls_psk_allocate_server_credentials(&keys_);
  const std::string file = options_.path("keys.psk");
  require_readable(file);
  const int status = gnutls_psk_set_server_credentials_file(keys_, file.c_str());
  if (status < 0) fail(file, status);
}

std::unique_ptr<Session> GnutlsCredentials::start(int fd) const {
  const bool verify = options_.kind == TlsCredentials::Kind::x509 && options_.verify_peer;
  auto session = std::make_unique<GnutlsSession>(
      fd, verify ? GnutlsSession::Peer::verified : GnutlsSession::Peer::taken_as_it_is);
  prepare(session->handle());
  return session;
}

void GnutlsCredentials::prepare(gnutls_session_t session) const {
  std::string priority = options_.priority.empty() ? "NORMAL" : options_.priority;
  priority += ":-VERS-TLS1.0:-VERS-TLS1.1";
  if (options_.kind == TlsCredentials::Kind::psk) priority += ":+ECDHE-PSK:+DHE-PSK:+PSK";
  const char* where = nullptr;
  const int status = gnutls_priority_set_direct(session, priority.c_str(), &where);
  if (status < 0) {
    throw Error(EINVAL, fmt::format("TLS priority '{}': {}", priority, gnutls_strerror(status)));
  }
  if (options_.kind == TlsCredentials::Kind::psk) {
    gnutls_credentials_set(session, GNUTLS_CRD_PSK, keys_);
    return;
  }
  gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, certificates_);
  gnutls_certificate_server_set_request(
      session, options_.verify_peer ? GNUTLS_CERT_REQUIRE : GNUTLS_CERT_IGNORE);
}

}  // namespace vise::tls
