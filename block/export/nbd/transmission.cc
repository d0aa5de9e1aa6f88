// Taking requests from the wire. What is done about them is in serve.cc.
#include "export/nbd/transmission.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <utility>

#include "vise/util/endian.h"

namespace vise::nbd {

Transmission::Transmission(Session session, Stream& stream, Input& input)
    : session_(std::move(session)),
      target_(*session_.target),
      stream_(stream),
      input_(input),
      output_(stream),
      replies_(session_, output_) {}

Task<void> Transmission::run() {
  TaskScope sender;
  sender.spawn(output_.run([this](const Message& message) { sent(message); }));
  std::exception_ptr failure;
  try {
    co_await receive_requests();
  } catch (...) {
    failure = std::current_exception();
  }
  co_await requests_.join();
  output_.finish();
  co_await sender.join();
  if (failure) std::rethrow_exception(failure);
}

Task<void> Transmission::receive_requests() {
  for (;;) {
    std::optional<Request> request = co_await next_request();
    // What a client that is cut off had asked for is still in the buffer.
    if (!request || stream_.is_shut_down()) co_return;
    if (request->command == Command::disconnect) co_return;
    ++in_flight_;
    requests_.spawn(serve(std::move(*request)));
    co_await reserve(0);
  }
}

// The next request that can be served, its payload with it; those that cannot be are answered here.
// Nothing if the client has left.
Task<std::optional<Request>> Transmission::next_request() {
  for (;;) {
    const std::size_t size = session_.extended ? extended_request_size : request_size;
    const std::span<const std::byte> bytes = co_await input_.take(size);
    if (bytes.empty()) co_return std::nullopt;
    BigEndianReader reader(bytes);
    const std::uint32_t magic = reader.u32();
    if (magic != (session_.extended ? extended_request_magic : request_magic)) {
      throw Error(EPROTO, fmt::format("Bad magic number {:#x} of a request", magic));
    }
    Request request;
    request.flags = reader.u16();
    request.command = Command{reader.u16()};
    request.cookie = reader.u64();
    request.offset = reader.u64();
    request.length = session_.extended ? reader.u64() : reader.u32();

    // QEMU as a client does not set the flag on writes, though the protocol wants it.
    const bool is_write = request.command == Command::write;
    const bool has_payload =
        is_write || (session_.extended && request.has(command_flag::payload_length));
    if (!has_payload) {
      request.charge = memory_for(request);
      if (request.charge > 0) co_await reserve(request.charge);
      co_return std::optional<Request>(std::move(request));
    }
    const std::uint64_t payload = request.length;
    if (payload > max_payload) {
      co_await refuse_payload(request, payload, "The payload is too large");
      continue;
    }
    if (!is_write && request.command != Command::block_status) {
      co_await refuse_payload(request, payload, "This request takes no payload");
      continue;
    }
    co_await take_payload(request, payload);
    co_return std::optional<Request>(std::move(request));
  }
}

// Bytes that serving it takes beside its payload.
std::uint64_t Transmission::memory_for(const Request& request) const {
  switch (request.command) {
    case Command::read:
      return request.length <= max_payload ? request.length : 0;  // those are refused
    case Command::cache:
      return std::min(request.length, cache_slice);
    case Command::block_status:
      if (request.has(command_flag::req_one)) return 0;
      return max_status_runs * sizeof(StatusRun) * session_.contexts.size();
    default:
      return 0;
  }
}

Task<void> Transmission::take_payload(Request& request, std::uint64_t length) {
  request.charge = length + memory_for(request);
  co_await reserve(request.charge);
  request.payload = Buffer(length);
  co_await input_.read(request.payload);
}

// The framing survives if the payload is read; what nobody sends by mistake is not.
Task<void> Transmission::refuse_payload(Request& request, std::uint64_t length,
                                        std::string_view text) {
  const std::string reason(text);
  if (length > 2 * std::uint64_t{max_payload}) {
    throw Error(EPROTO, fmt::format("A request has {} bytes of payload, allowed are {}", length,
                                    max_payload));
  }
  co_await input_.skip(length);
  ++in_flight_;
  replies_.failure(request, WireError::einval, reason);
  co_await reserve(0);
}

// Waits until the client may have another request with so many bytes, and takes them.
Task<void> Transmission::reserve(std::uint64_t bytes) {
  while (in_flight_ >= Budget::max_requests ||
         (charged_ > 0 && charged_ + bytes > Budget::max_bytes)) {
    co_await room_.wait();
  }
  charged_ += bytes;
}

void Transmission::sent(const Message& message) {
  charged_ -= message.charge;
  if (message.last) --in_flight_;
  room_.wake_one();
}

}  // namespace vise::nbd
