// TLS on the socket of one client, as the server's side: the waiting that vise::tls leaves to
// others.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "util/tls.h"
#include "vise/buffer.h"
#include "vise/task.h"

namespace vise::nbd {

class Stream;

/// Used by Stream alone, which waits for the socket on its behalf.
class TlsSession {
 public:
  TlsSession(std::shared_ptr<TlsCredentials> credentials, int fd);
  TlsSession(const TlsSession&) = delete;

  /// Throws Error(EPROTO / EACCES) if it fails or the peer's certificate is not to be trusted.
  Task<void> handshake(Stream& stream);
  Task<std::size_t> receive(Stream& stream, std::span<std::byte> data);
  Task<void> send(Stream& stream, std::span<iovec> parts);
  /// Tells the peer that nothing more comes; does not wait.
  void say_goodbye() noexcept { session_->say_goodbye(); }

  /// The distinguished name of the peer's certificate; empty without one.
  std::string peer_name() const { return session_->peer_name(); }

 private:
  Task<void> send_record(Stream& stream, std::span<const std::byte> data);

  const std::shared_ptr<TlsCredentials> credentials_;  // what the session was made from
  const std::unique_ptr<tls::Session> session_;
  Buffer record_;
};

}  // namespace vise::nbd
