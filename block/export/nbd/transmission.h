// The transmission phase of one connection: requests in, replies out, many in flight.
#pragma once

#include <cstdint>
#include <optional>

#include "export/nbd/input.h"
#include "export/nbd/request.h"
#include "vise/sync.h"

namespace vise::nbd {

/// What one client may have in flight. Beyond that its requests stay in the socket.
struct Budget {
  static constexpr unsigned max_requests = 128;
  static constexpr std::uint64_t max_bytes = 64u << 20;  // of payloads and replies
};

class Transmission {
 public:
  /// The cache command reads so many bytes at a time.
  static constexpr std::uint64_t cache_slice = 1u << 20;
  /// Of one context in one answer to block status: 1 MiB on the wire.
  static constexpr std::size_t max_status_runs = 1u << 17;

  Transmission(Session session, Stream& stream, Input& input);

  /// Serves until the client leaves, breaks the protocol or is shut down. All requests have ended
  /// then. Throws Error that says what the client did wrong.
  Task<void> run();

 private:
  Task<void> receive_requests();
  Task<std::optional<Request>> next_request();
  Task<void> take_payload(Request& request, std::uint64_t length);
  std::uint64_t memory_for(const Request& request) const;
  Task<void> refuse_payload(Request& request, std::uint64_t length, std::string_view text);
  Task<void> reserve(std::uint64_t bytes);
  void sent(const Message& message);

  Task<void> serve(Request request);
  Task<void> perform(Request& request);
  void check(const Request& request) const;
  Task<void> read(Request& request);
  Task<bool> read_in_chunks(Request& request);
  Task<void> read_chunks(Request& request, const std::vector<StatusRun>& runs);
  Task<void> read_into(std::uint64_t offset, std::span<std::byte> data);
  Task<void> write(Request& request);
  Task<void> trim(Request& request);
  Task<void> cache(Request& request);
  Task<void> write_zeroes(Request& request);
  Task<void> block_status(Request& request);
  std::vector<const MetaContext*> requested_contexts(Request& request) const;
  GuestRange inside_node(const Request& request) const;

  const Session session_;
  Export& target_;
  Stream& stream_;
  Input& input_;
  Output output_;
  Replies replies_;
  TaskScope requests_;
  unsigned in_flight_ = 0;
  std::uint64_t charged_ = 0;  // bytes
  WaitQueue room_;
};

}  // namespace vise::nbd
