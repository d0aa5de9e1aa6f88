#include "export/nbd/tls_session.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "export/nbd/stream.h"
#include "vise/error.h"

namespace vise::nbd {

namespace {

constexpr std::size_t record_size = 16u << 10;  // the most that one TLS record holds

}  // namespace

TlsSession::TlsSession(std::shared_ptr<TlsCredentials> credentials, int fd)
    : credentials_(std::move(credentials)),
      session_(credentials_->start_session(fd)),
      record_(record_size) {}

Task<void> TlsSession::handshake(Stream& stream) {
  for (;;) {
    const tls::Wait wait = session_->handshake();
    if (wait == tls::Wait::nothing) co_return;
    co_await stream.wait(wait == tls::Wait::output ? Stream::Direction::out
                                                   : Stream::Direction::in);
    if (stream.is_shut_down()) throw Error(ECONNRESET, "The connection ended in the TLS handshake");
  }
}

Task<std::size_t> TlsSession::receive(Stream& stream, std::span<std::byte> data) {
  for (;;) {
    if (stream.is_shut_down()) co_return 0;
    const tls::Session::Moved moved = session_->receive(data);
    if (moved.wait == tls::Wait::nothing) co_return moved.bytes;
    co_await stream.wait(Stream::Direction::in);
  }
}

Task<void> TlsSession::send_record(Stream& stream, std::span<const std::byte> data) {
  while (!data.empty()) {
    if (stream.is_shut_down()) throw Error::system_error(EPIPE);
    const tls::Session::Moved moved = session_->send(data);
    data = data.subspan(moved.bytes);
    if (moved.wait != tls::Wait::nothing) co_await stream.wait(Stream::Direction::out);
  }
}

// Headers and short payloads share records.
Task<void> TlsSession::send(Stream& stream, std::span<iovec> parts) {
  std::size_t filled = 0;
  for (const iovec part : parts) {
    std::span<const std::byte> data(static_cast<const std::byte*>(part.iov_base), part.iov_len);
    while (!data.empty()) {
      const std::size_t count = std::min(data.size(), record_size - filled);
      std::memcpy(record_.data() + filled, data.data(), count);
      filled += count;
      data = data.subspan(count);
      if (filled < record_size) continue;
      co_await send_record(stream, record_.first(filled));
      filled = 0;
    }
  }
  if (filled > 0) co_await send_record(stream, record_.first(filled));
}

}  // namespace vise::nbd
