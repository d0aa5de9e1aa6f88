#include "export/nbd/tls_session.h"

#include <fmt/format.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "export/nbd/stream.h"
#include "vise/buffer.h"
#include "vise/error.h"

namespace vise::nbd {

namespace {

constexpr std::size_t record_size = 16u << 10;  // the most that one TLS record holds

[[noreturn]] void fail(int status) {
  throw Error(EPROTO, fmt::format("TLS: {}", gnutls_strerror(status)));
}

bool must_wait(ssize_t status) {
  return status == GNUTLS_E_AGAIN || status == GNUTLS_E_INTERRUPTED;
}

}  // namespace

struct TlsSession::Impl {
  gnutls_session_t session = nullptr;
  Buffer record{record_size};
  bool established = false;
  ~Impl() {
    if (session != nullptr) gnutls_deinit(session);
  }
};

TlsSession::TlsSession(std::shared_ptr<TlsCredentials> credentials, int fd)
    : credentials_(std::move(credentials)), impl_(std::make_unique<Impl>()) {
  const int status =
      gnutls_init(&impl_->session, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);
  if (status < 0) fail(status);
  credentials_->prepare(impl_->session);
  gnutls_transport_set_int(impl_->session, fd);
}

TlsSession::~TlsSession() = default;

Task<void> TlsSession::handshake(Stream& stream) {
  for (;;) {
    const int status = gnutls_handshake(impl_->session);
    if (status == 0) break;
    if (status < 0 && !must_wait(status) && gnutls_error_is_fatal(status) != 0) fail(status);
    if (!must_wait(status)) continue;
    const bool writes = gnutls_record_get_direction(impl_->session) == 1;
    co_await stream.wait(writes ? Stream::Direction::out : Stream::Direction::in);
    if (stream.is_shut_down()) throw Error(ECONNRESET, "The connection ended in the TLS handshake");
  }
  verify();
  impl_->established = true;
}

void TlsSession::verify() const {
  const TlsCredentials::Options& options = credentials_->options();
  if (options.kind != TlsCredentials::Kind::x509 || !options.verify_peer) return;
  unsigned problems = 0;
  const int status = gnutls_certificate_verify_peers2(impl_->session, &problems);
  if (status < 0) fail(status);
  if (problems == 0) return;
  gnutls_datum_t text{};
  gnutls_certificate_verification_status_print(problems, GNUTLS_CRT_X509, &text, 0);
  const std::string reason(reinterpret_cast<const char*>(text.data), text.size);
  gnutls_free(text.data);
  throw Error(EACCES, fmt::format("The client's certificate is not trusted: {}", reason));
}

std::string TlsSession::peer_name() const {
  unsigned count = 0;
  const gnutls_datum_t* chain = gnutls_certificate_get_peers(impl_->session, &count);
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

Task<std::size_t> TlsSession::receive(Stream& stream, std::span<std::byte> data) {
  for (;;) {
    if (stream.is_shut_down()) co_return 0;
    const ssize_t status = gnutls_record_recv(impl_->session, data.data(), data.size());
    if (status >= 0) co_return static_cast<std::size_t>(status);
    // Many clients just close the socket; whether a message is cut off is seen by its length.
    if (status == GNUTLS_E_PREMATURE_TERMINATION) co_return 0;
    if (status == GNUTLS_E_REHANDSHAKE) throw Error(EPROTO, "TLS: renegotiation is refused");
    if (must_wait(status))
      co_await stream.wait(Stream::Direction::in);
    else if (gnutls_error_is_fatal(static_cast<int>(status)) != 0)
      fail(static_cast<int>(status));
  }
}

Task<void> TlsSession::send_record(Stream& stream, std::span<const std::byte> data) {
  while (!data.empty()) {
    if (stream.is_shut_down()) throw Error::system_error(EPIPE);
    const ssize_t status = gnutls_record_send(impl_->session, data.data(), data.size());
    if (status >= 0) {
      data = data.subspan(static_cast<std::size_t>(status));
    } else if (must_wait(status)) {
      co_await stream.wait(Stream::Direction::out);
    } else {
      fail(static_cast<int>(status));
    }
  }
}

// Headers and short payloads share records.
Task<void> TlsSession::send(Stream& stream, std::span<iovec> parts) {
  std::size_t filled = 0;
  for (const iovec part : parts) {
    std::span<const std::byte> data(static_cast<const std::byte*>(part.iov_base), part.iov_len);
    while (!data.empty()) {
      const std::size_t count = std::min(data.size(), record_size - filled);
      std::memcpy(impl_->record.data() + filled, data.data(), count);
      filled += count;
      data = data.subspan(count);
      if (filled < record_size) continue;
      co_await send_record(stream, impl_->record.first(filled));
      filled = 0;
    }
  }
  if (filled > 0) co_await send_record(stream, impl_->record.first(filled));
}

void TlsSession::say_goodbye() noexcept {
  if (impl_->established) gnutls_bye(impl_->session, GNUTLS_SHUT_WR);
}

}  // namespace vise::nbd
