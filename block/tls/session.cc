#include "tls/session.h"

#include <fmt/format.h>
#include <gnutls/x509.h>

#include <cerrno>

#include "vise/error.h"

namespace vise::tls {

namespace {

[[noreturn]] void fail(ssize_t status) {
  throw Error(EPROTO, fmt::format("TLS: {}", gnutls_strerror(static_cast<int>(status))));
}

bool must_wait(ssize_t status) {
  return status == GNUTLS_E_AGAIN || status == GNUTLS_E_INTERRUPTED;
}

bool is_fatal(ssize_t status) { return gnutls_error_is_fatal(static_cast<int>(status)) != 0; }

}  // namespace

GnutlsSession::GnutlsSession(int fd, Peer peer) : peer_(peer) {
  const int status = gnutls_init(&session_, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);
  if (status < 0) fail(status);
  gnutls_transport_set_int(session_, fd);
}

GnutlsSession::~GnutlsSession() { gnutls_deinit(session_); }

Wait GnutlsSession::handshake() {
  for (;;) {
    const int status = gnutls_handshake(session_);
    if (status == 0) break;
    if (must_wait(status)) {
      return gnutls_record_get_direction(session_) == 1 ? Wait::output : Wait::input;
    }
    if (is_fatal(status)) fail(status);
  }
  verify();
  established_ = true;
  return Wait::nothing;
}

void GnutlsSession::verify() const {
  if (peer_ == Peer::taken_as_it_is) return;
  unsigned problems = 0;
  const int status = gnutls_certificate_verify_peers2(session_, &problems);
  if (status < 0) fail(status);
  if (problems == 0) return;
  gnutls_datum_t text{};
  gnutls_certificate_verification_status_print(problems, GNUTLS_CRT_X509, &text, 0);
  const std::string reason(reinterpret_cast<const char*>(text.data), text.size);
  gnutls_free(text.data);
  throw Error(EACCES, fmt::format("The client's certificate is not trusted: {}", reason));
}

std::string GnutlsSession::peer_name() const {
  unsigned count = 0;
  const gnutls_datum_t* chain = gnutls_certificate_get_peers(session_, &count);
  if (chain == nullptr || count == 0) return {};
  gnutls_x509_crt_t certificate = nullptr;
  gnutls_x509_crt_init(&certificate);
  std::string name;
  gnutls_datum_t text{};
  if (gnutls_x509_crt_import(certificate, &chain[0], GNUTLS_X509_FMT_DER) == 0 &&
      gnutls_x509_crt_get_dn2(certificate, &text) == 0) {
    name.assign(reinterpret_cast<const char*>(text.data), text.size);
    gnutls_free(text.data);
  }
  gnutls_x509_crt_deinit(certificate);
  return name;
}

Session::Moved GnutlsSession::receive(std::span<std::byte> data) {
  for (;;) {
    const ssize_t status = gnutls_record_recv(session_, data.data(), data.size());
    if (status >= 0) return {Wait::nothing, static_cast<std::size_t>(status)};
    // Many clients just close the socket; whether a message is cut off is seen by its length.
    if (status == GNUTLS_E_PREMATURE_TERMINATION) return {Wait::nothing, 0};
    if (status == GNUTLS_E_REHANDSHAKE) throw Error(EPROTO, "TLS: renegotiation is refused");
    if (must_wait(status)) return {Wait::input, 0};
    if (is_fatal(status)) fail(status);
  }
}

Session::Moved GnutlsSession::send(std::span<const std::byte> data) {
  const ssize_t status = gnutls_record_send(session_, data.data(), data.size());
  if (status >= 0) return {Wait::nothing, static_cast<std::size_t>(status)};
  if (must_wait(status)) return {Wait::output, 0};
  fail(status);
}

void GnutlsSession::say_goodbye() noexcept {
  if (established_) gnutls_bye(session_, GNUTLS_SHUT_WR);
}

}  // namespace vise::tls
