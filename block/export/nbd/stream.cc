#include "export/nbd/stream.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <utility>

#include "export/nbd/tls_session.h"
#include "vise/error.h"

namespace vise::nbd {

Stream::Stream(FileDescriptor socket)
    : socket_(std::move(socket)),
      readable_(socket_.get(), FdWatch::Until::readable),
      writable_(socket_.get(), FdWatch::Until::writable) {}

Stream::~Stream() = default;

Task<void> Stream::wait(Direction direction) {
  auto& since = direction == Direction::in ? receiving_since_ : sending_since_;
  FdWatch& watch = direction == Direction::in ? readable_ : writable_;
  since = Clock::now();
  co_await watch.wait();
  since.reset();
}

Task<void> Stream::start_tls(std::shared_ptr<TlsCredentials> credentials) {
  auto session = std::make_unique<TlsSession>(std::move(credentials), socket_.get());
  co_await session->handshake(*this);
  tls_ = std::move(session);
}

std::string Stream::peer_name() const { return tls_ != nullptr ? tls_->peer_name() : ""; }

void Stream::say_goodbye() noexcept {
  if (tls_ != nullptr && !shut_down_) tls_->say_goodbye();
}

Task<std::size_t> Stream::receive(std::span<std::byte> data) {
  if (tls_ != nullptr) co_return co_await tls_->receive(*this, data);
  for (;;) {
    if (shut_down_) co_return 0;
    if (!drained_) {
      const ssize_t count = ::recv(socket_.get(), data.data(), data.size(), 0);
      if (count >= 0) {
        drained_ = static_cast<std::size_t>(count) < data.size();
        co_return static_cast<std::size_t>(count);
      }
      if (errno == EINTR) continue;
      if (errno != EAGAIN) throw Error::system_error(errno);
    }
    co_await wait(Direction::in);
    drained_ = false;
  }
}

Task<void> Stream::send(std::span<iovec> parts) {
  if (tls_ != nullptr) {
    co_await tls_->send(*this, parts);
    co_return;
  }
  while (!parts.empty()) {
    if (shut_down_) throw Error::system_error(EPIPE);
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = std::min<std::size_t>(parts.size(), IOV_MAX);
    const ssize_t count = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
    if (count < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) throw Error::system_error(errno);
      co_await wait(Direction::out);
      continue;
    }
    auto sent = static_cast<std::size_t>(count);
    while (!parts.empty() && sent >= parts.front().iov_len) {
      sent -= parts.front().iov_len;
      parts = parts.subspan(1);
    }
    if (sent > 0) {
      parts.front().iov_base = static_cast<std::byte*>(parts.front().iov_base) + sent;
      parts.front().iov_len -= sent;
    }
  }
}

void Stream::shut_down() {
  if (std::exchange(shut_down_, true)) return;
  ::shutdown(socket_.get(), SHUT_RDWR);
  readable_.cancel();
  writable_.cancel();
}

bool Stream::stalled_since(Clock::time_point time) const {
  return (in_message && receiving_since_ && *receiving_since_ <= time) ||
         (sending_since_ && *sending_since_ <= time);
}

}  // namespace vise::nbd
