#include "protocol/nbd/connection.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <libnbd.h>

#include <atomic>
#include <cassert>
#include <cerrno>
#include <utility>

#include "vise/error.h"
#include "vise/event_loop.h"

namespace vise::nbd {

namespace {

constexpr const char* allocation = LIBNBD_CONTEXT_BASE_ALLOCATION;

Error last_error() {
  const int code = nbd_get_errno() != 0 ? nbd_get_errno() : EIO;
  const char* text = nbd_get_error();
  return Error(code, text != nullptr ? text : "libnbd failed without saying why");
}

std::uint32_t block_size(nbd_handle* handle, int which, std::uint32_t otherwise) {
  const std::int64_t size = nbd_get_block_size(handle, which);
  return size > 0 && size <= UINT32_MAX ? static_cast<std::uint32_t>(size) : otherwise;
}

bool is_power_of_two(std::uint32_t value) { return value != 0 && (value & (value - 1)) == 0; }

}  // namespace

// Lives in the frame of the coroutine that waits for it.
struct Connection::Request {
  std::coroutine_handle<> waiter;
  int error = 0;
  bool done = false;
  StatusAnswer status;

  nbd_completion_callback completion() {
    return {.callback = completed, .user_data = this, .free = nullptr};
  }
  // Called by libnbd from within its state machine, which must not be entered again: the waiter
  // goes on through the loop.
  static int completed(void* data, int* error) noexcept {
    auto& self = *static_cast<Request*>(data);
    self.error = *error;
    self.done = true;
    if (self.waiter) EventLoop::current().schedule(self.waiter);
    return 1;  // libnbd may forget it
  }
  static int extents(void* data, const char* context, std::uint64_t, std::uint32_t* entries,
                     std::size_t count, int*) noexcept {
    auto& self = *static_cast<Request*>(data);
    if (std::string_view(context) == allocation && count >= 2) {
      self.status = {entries[0], entries[1]};
    }
    return 0;
  }

  struct Awaiter {
    Request& request;
    bool await_ready() const noexcept { return request.done; }
    void await_suspend(std::coroutine_handle<> handle) const { request.waiter = handle; }
    void await_resume() const noexcept {}
  };
};

void Connection::HandleCloser::operator()(nbd_handle* handle) const { nbd_close(handle); }

// Shared with the thread that connects.
struct Connection::Attempt {
  std::atomic<bool> stop{false};
};

namespace {

// Throws Error.
void begin_connecting(nbd_handle* handle, const Target& target) {
  const SocketAddress& address = target.address;
  if (target.tls != nullptr && address.kind == SocketAddress::Kind::inet) {
    // Only so libnbd compares the server's certificate with the name of the host.
    if (nbd_aio_connect_tcp(handle, address.host.c_str(), address.port.c_str()) < 0) {
      throw last_error();
    }
    return;
  }
  const FileDescriptor socket = connect_to(address);
  const int fd = ::fcntl(socket.get(), F_DUPFD_CLOEXEC, 0);
  if (fd < 0) throw Error::system_error(errno);
  if (nbd_aio_connect_socket(handle, fd) < 0) throw last_error();
}

}  // namespace

// On a thread.
std::optional<Error> Connection::connect(nbd_handle* handle, const Target& target,
                                         Attempt& attempt) {
  constexpr int look_up = 100;  // milliseconds between looks at attempt.stop
  try {
    begin_connecting(handle, target);
    while (nbd_aio_is_connecting(handle) == 1) {
      if (attempt.stop) return Error(ECANCELED, "The server does not finish the handshake");
      if (nbd_poll(handle, look_up) < 0) return last_error();
    }
    if (nbd_aio_is_ready(handle) != 1) return last_error();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

void prepare_tls(nbd_handle* handle, const SocketAddress& address,
                 const TlsCredentials& credentials) {
  const TlsCredentials::Options& options = credentials.options();
  const bool inet = address.kind == SocketAddress::Kind::inet;
  if (nbd_supports_tls(handle) != 1) throw Error(ENOTSUP, "libnbd is built without TLS");
  nbd_set_tls(handle, LIBNBD_TLS_REQUIRE);
  int status = 0;
  if (options.kind == TlsCredentials::Kind::psk) {
    nbd_set_tls_username(handle, options.username.empty() ? "qemu" : options.username.c_str());
    status = nbd_set_tls_psk_file(handle, credentials.path("keys.psk").c_str());
  } else if (options.verify_peer && !inet) {
    throw Error(ENOTSUP,
                "A Unix socket has no host name that a certificate could be compared with: use "
                "tls-creds-psk, or verify-peer=off");
  } else {
    nbd_set_tls_verify_peer(handle, options.verify_peer);
    status = nbd_set_tls_certificates(handle, options.folder.c_str());
  }
  if (status < 0) throw last_error();
}

Task<std::unique_ptr<Connection>> Connection::open(Target target, IoEngine& engine,
                                                   std::function<void()>& interrupt) {
  Handle handle(nbd_create());
  if (handle == nullptr) throw last_error();
  nbd_set_export_name(handle.get(), target.export_name.c_str());
  nbd_add_meta_context(handle.get(), allocation);
  nbd_set_full_info(handle.get(), true);
  nbd_set_strict_mode(handle.get(), 0);           // our own checks come before
  nbd_set_pread_initialize(handle.get(), false);  // what fails is not looked at
  if (target.tls != nullptr) prepare_tls(handle.get(), target.address, *target.tls);
  // The handshake blocks; a server that stalls holds one thread until it is shut out.
  Attempt attempt;
  interrupt = [&attempt] { attempt.stop = true; };
  std::optional<Error> failure;
  const std::function<std::int64_t()> work = [&] {
    failure = connect(handle.get(), target, attempt);
    return std::int64_t{0};
  };
  co_await engine.call(work);
  interrupt = nullptr;
  if (failure) {
    failure->add_context(fmt::format("NBD server '{}'", target.address.text()));
    throw Error(*failure);
  }
  std::unique_ptr<Connection> connection(new Connection(std::move(handle)));
  connection->read_facts();
  co_return connection;
}

Connection::Connection(Handle handle)
    : handle_(std::move(handle)), watch_(nbd_aio_get_fd(handle_.get()), FdWatch::Until::readable) {}

Connection::~Connection() { assert(!running_ && "await run() before"); }

void Connection::read_facts() {
  nbd_handle* handle = handle_.get();
  const std::int64_t size = nbd_get_size(handle);
  if (size < 0) throw last_error();
  facts_.size = static_cast<std::uint64_t>(size);
  facts_.minimum = block_size(handle, LIBNBD_SIZE_MINIMUM, 1);
  facts_.preferred = block_size(handle, LIBNBD_SIZE_PREFERRED, facts_.preferred);
  facts_.maximum = block_size(handle, LIBNBD_SIZE_MAXIMUM, facts_.maximum);
  if (!is_power_of_two(facts_.minimum) || facts_.minimum > 65536 ||
      facts_.maximum < facts_.minimum) {
    throw Error(EPROTO, fmt::format("The server has impossible block sizes: minimum {}, maximum {}",
                                    facts_.minimum, facts_.maximum));
  }
  facts_.read_only = nbd_is_read_only(handle) == 1;
  facts_.can_flush = nbd_can_flush(handle) == 1;
  facts_.can_fua = nbd_can_fua(handle) == 1;
  facts_.can_trim = nbd_can_trim(handle) == 1;
  facts_.can_zero = nbd_can_zero(handle) == 1;
  facts_.can_fast_zero = nbd_can_fast_zero(handle) == 1;
  facts_.can_tell_status = nbd_can_meta_context(handle, allocation) == 1;
}

void Connection::notify(unsigned direction) {
  nbd_handle* handle = handle_.get();
  if (watch_.readable() && (direction & LIBNBD_AIO_DIRECTION_READ) != 0) {
    nbd_aio_notify_read(handle);  // errors show in the state of the handle
  } else if (watch_.writable() && (direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) {
    nbd_aio_notify_write(handle);
  }
}

Task<void> Connection::run() {
  running_ = true;
  nbd_handle* handle = handle_.get();
  while (!watch_.cancelled()) {
    if (nbd_aio_is_dead(handle) == 1 || nbd_aio_is_closed(handle) == 1) break;
    const unsigned direction = nbd_aio_get_direction(handle);
    watch_.set((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0 ? FdWatch::Until::either
                                                             : FdWatch::Until::readable);
    co_await watch_.wait();
    notify(nbd_aio_get_direction(handle));
  }
  lost_ = true;
  running_ = false;
}

void Connection::close() {
  if (!lost_ && nbd_aio_is_ready(handle_.get()) == 1) nbd_aio_disconnect(handle_.get(), 0);
  lost_ = true;
  watch_.cancel();
}

// Waits for the request that libnbd has given `cookie`.
Task<void> Connection::finish(Request& request, std::int64_t cookie) {
  if (cookie < 0) {
    const Error error = last_error();
    if (nbd_aio_is_dead(handle_.get()) == 1 || nbd_aio_is_closed(handle_.get()) == 1) {
      watch_.interrupt();  // run() will see it
      throw ConnectionLost();
    }
    throw Error(error);
  }
  // What could not be sent at once is sent by run().
  watch_.interrupt();
  co_await Request::Awaiter{request};
  if (request.error == 0) co_return;
  if (lost_ || nbd_aio_is_dead(handle_.get()) == 1 || nbd_aio_is_closed(handle_.get()) == 1) {
    watch_.interrupt();
    throw ConnectionLost();
  }
  throw Error::system_error(request.error);
}

Task<void> Connection::read(std::uint64_t offset, std::span<std::byte> data) {
  if (lost_) throw ConnectionLost();
  Request request;
  const std::int64_t cookie =
      nbd_aio_pread(handle_.get(), data.data(), data.size(), offset, request.completion(), 0);
  co_await finish(request, cookie);
}

Task<void> Connection::write(std::uint64_t offset, std::span<const std::byte> data,
                             std::uint32_t flags) {
  if (lost_) throw ConnectionLost();
  Request request;
  const std::int64_t cookie =
      nbd_aio_pwrite(handle_.get(), data.data(), data.size(), offset, request.completion(), flags);
  co_await finish(request, cookie);
}

Task<void> Connection::zero(std::uint64_t offset, std::uint64_t length, std::uint32_t flags) {
  if (lost_) throw ConnectionLost();
  Request request;
  const std::int64_t cookie =
      nbd_aio_zero(handle_.get(), length, offset, request.completion(), flags);
  co_await finish(request, cookie);
}

Task<void> Connection::trim(std::uint64_t offset, std::uint64_t length) {
  if (lost_) throw ConnectionLost();
  Request request;
  const std::int64_t cookie = nbd_aio_trim(handle_.get(), length, offset, request.completion(), 0);
  co_await finish(request, cookie);
}

Task<void> Connection::flush() {
  if (lost_) throw ConnectionLost();
  Request request;
  const std::int64_t cookie = nbd_aio_flush(handle_.get(), request.completion(), 0);
  co_await finish(request, cookie);
}

Task<StatusAnswer> Connection::status(std::uint64_t offset, std::uint64_t length) {
  if (lost_) throw ConnectionLost();
  Request request;
  const nbd_extent_callback extents = {
      .callback = Request::extents, .user_data = &request, .free = nullptr};
  const std::int64_t cookie = nbd_aio_block_status(handle_.get(), length, offset, extents,
                                                   request.completion(), LIBNBD_CMD_FLAG_REQ_ONE);
  co_await finish(request, cookie);
  co_return request.status;
}

}  // namespace vise::nbd
