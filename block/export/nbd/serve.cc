// What is done about each request.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "export/nbd/transmission.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::nbd {

namespace {

// Reads from here on look for holes first, where the form of replies can tell them.
constexpr std::uint64_t chunked_read = 64u << 10;
// Zeroes and discards of whole disks are done in parts, so that a client that is gone stops them.
constexpr std::uint64_t slice = 1u << 30;

// A request that is wrong in itself, as opposed to one that fails.
class Refusal {
 public:
  Refusal(WireError error, std::string text) : error_(error), text_(std::move(text)) {}
  WireError error() const { return error_; }
  const std::string& text() const { return text_; }

 private:
  WireError error_;
  std::string text_;
};

std::uint16_t allowed_flags(Command command, bool extended) {
  const std::uint16_t payload = extended ? command_flag::payload_length : 0;
  switch (command) {
    case Command::read:
      return command_flag::fua | command_flag::df;
    case Command::write:
      return command_flag::fua | payload;
    case Command::write_zeroes:
      return command_flag::fua | command_flag::no_hole | command_flag::fast_zero;
    case Command::block_status:
      return command_flag::fua | command_flag::req_one | payload;
    default:
      return command_flag::fua;
  }
}

}  // namespace

Task<void> Transmission::serve(Request request) {
  // Reserved for the payload or the reply; from now on it goes with the reply.
  WireError error = WireError::none;
  std::string text;
  try {
    check(request);
    co_await perform(request);
  } catch (const Refusal& refusal) {
    error = refusal.error();
    text = refusal.text();
  } catch (const Error& failure) {
    // Not our message: it may name files of this host.
    const bool fast_zero = request.command == Command::write_zeroes &&
                           request.has(command_flag::fast_zero) && failure.code() == ENOTSUP;
    error = fast_zero ? WireError::enotsup : wire_error(failure.code());
    text = std::strerror(static_cast<int>(error));
  } catch (const std::bad_alloc&) {
    error = WireError::enomem;
    text = "Out of memory";
  }
  if (error != WireError::none) replies_.failure(request, error, text);
}

// Throws Refusal for what cannot be meant.
void Transmission::check(const Request& request) const {
  const auto refuse = [](WireError error, std::string_view text) {
    throw Refusal(error, std::string(text));
  };
  const auto number = static_cast<unsigned>(request.command);
  if (request.command == Command::disconnect || request.command > Command::block_status) {
    throw Refusal(WireError::einval, fmt::format("Unknown command {}", number));
  }
  const unsigned bad = request.flags & ~allowed_flags(request.command, session_.extended);
  if (bad != 0) {
    throw Refusal(WireError::einval,
                  fmt::format("Flags {:#x} do not go with command {}", bad, number));
  }
  if (request.command == Command::flush) return;
  const bool writes = request.command == Command::write || request.command == Command::trim ||
                      request.command == Command::write_zeroes;
  if (writes && !target_.writable()) refuse(WireError::eperm, "The export is read-only");
  const bool bounded = request.command == Command::read || request.command == Command::cache;
  if (bounded && request.length > max_payload) {
    refuse(WireError::einval, "The request is too long");
  }
  // The length of block status with a payload is in the payload, and checked there.
  if (request.command == Command::block_status && !request.payload.empty()) return;
  if (!GuestRange{GuestOffset(request.offset), request.length}.ends_by(target_.size())) {
    const bool adds = request.command == Command::write || request.command == Command::write_zeroes;
    refuse(adds ? WireError::enospc : WireError::einval,
           "The request reaches past the end of the export");
  }
}

Task<void> Transmission::perform(Request& request) {
  switch (request.command) {
    case Command::read:
      co_await read(request);
      co_return;
    case Command::write:
      co_await write(request);
      break;
    case Command::flush:
      co_await target_.flush();
      break;
    case Command::trim:
      co_await trim(request);
      break;
    case Command::cache:
      co_await cache(request);
      break;
    case Command::write_zeroes:
      co_await write_zeroes(request);
      break;
    case Command::block_status:
      co_await block_status(request);
      co_return;
    case Command::disconnect:
      break;  // refused by check()
  }
  replies_.success(request);
}

// The part of the request that is not padding behind the node's end.
GuestRange Transmission::inside_node(const Request& request) const {
  const std::uint64_t end = target_.root().size();
  const GuestRange range{GuestOffset(request.offset), request.length};
  if (range.ends_by(end)) return range;
  return {range.start, end > request.offset ? end - request.offset : 0};
}

Task<void> Transmission::read_into(std::uint64_t offset, std::span<std::byte> data) {
  const std::uint64_t end = target_.root().size();
  std::size_t inside = data.size();
  if (offset > end || inside > end - offset) {
    inside = end > offset ? end - offset : 0;
    std::memset(data.data() + inside, 0, data.size() - inside);
  }
  if (inside > 0) co_await target_.root().read(GuestOffset(offset), data.first(inside));
}

Task<void> Transmission::read(Request& request) {
  if (request.length == 0) {
    replies_.success(request);
    co_return;
  }
  if (session_.structured && !request.has(command_flag::df) && request.length >= chunked_read) {
    const bool done = co_await read_in_chunks(request);
    if (done) co_return;
  }
  Buffer data(request.length);
  co_await read_into(request.offset, data);
  replies_.data(request, std::move(data));
}

// False, with nothing done, if there is no hole or nobody knows.
Task<bool> Transmission::read_in_chunks(Request& request) {
  constexpr std::size_t max_chunks = 64;
  const GuestRange range{GuestOffset(request.offset), request.length};
  std::vector<StatusRun> runs;
  try {
    runs = co_await target_.cheap_allocation(range, max_chunks);
  } catch (const Error&) {
    co_return false;  // the read will tell
  }
  std::uint64_t known = 0;
  bool holes = false;
  for (const StatusRun& run : runs) {
    known += run.length;
    if ((run.status & status_zero) != 0) holes = true;
  }
  if (!holes) co_return false;
  if (known < request.length) runs.push_back({request.length - known, 0});
  co_await read_chunks(request, runs);
  co_return true;
}

Task<void> Transmission::read_chunks(Request& request, const std::vector<StatusRun>& runs) {
  std::uint64_t at = request.offset;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const StatusRun run = runs[i];
    const auto last = i + 1 == runs.size() ? Replies::Last::yes : Replies::Last::no;
    if ((run.status & status_zero) != 0) {
      replies_.hole_chunk(request, at, run.length, last);
    } else {
      Buffer data(run.length);
      co_await read_into(at, data);
      const std::span<const std::byte> bytes = data;
      replies_.data_chunk(request, at, bytes, std::move(data), last);
    }
    at += run.length;
  }
}

Task<void> Transmission::write(Request& request) {
  const GuestRange inside = inside_node(request);
  const std::span<const std::byte> data = request.payload;
  const auto padding = data.subspan(inside.length);
  if (std::ranges::any_of(padding, [](std::byte byte) { return byte != std::byte{0}; })) {
    throw Refusal(WireError::enospc, "The image ends in the middle of this sector");
  }
  if (inside.empty()) co_return;
  const bool fua = request.has(command_flag::fua) || target_.writethrough();
  co_await target_.root().write(inside.start, data.first(inside.length), {.fua = fua});
}

Task<void> Transmission::trim(Request& request) {
  GuestRange left = inside_node(request);
  while (!left.empty()) {
    if (stream_.is_shut_down()) throw Error(ECANCELED, "The client is gone");
    const GuestRange part{left.start, std::min(left.length, slice)};
    co_await target_.root().discard(part);
    left = {part.end(), left.length - part.length};
  }
  if (request.has(command_flag::fua) || target_.writethrough()) co_await target_.flush();
}

Task<void> Transmission::cache(Request& request) {
  GuestRange left = inside_node(request);
  Buffer data(std::min(left.length, cache_slice));
  while (!left.empty()) {
    if (stream_.is_shut_down()) throw Error(ECANCELED, "The client is gone");
    const GuestRange part{left.start, std::min(left.length, cache_slice)};
    co_await target_.root().read(part.start, data.first(part.length));
    left = {part.end(), left.length - part.length};
  }
}

Task<void> Transmission::write_zeroes(Request& request) {
  const bool fast = request.has(command_flag::fast_zero);
  ZeroFlags flags;
  flags.may_unmap = !request.has(command_flag::no_hole);
  flags.fua = request.has(command_flag::fua) || target_.writethrough();
  flags.no_fallback = fast;
  GuestRange left = inside_node(request);
  while (!left.empty()) {
    if (stream_.is_shut_down()) throw Error(ECANCELED, "The client is gone");
    // A fast one that is refused must have changed nothing, so it is not cut.
    const GuestRange part{left.start, fast ? left.length : std::min(left.length, slice)};
    co_await target_.root().write_zeroes(part, flags);
    left = {part.end(), left.length - part.length};
  }
}

// Those selected in the handshake, or of them those the payload names, whose first field becomes
// the length of the request. Throws Refusal.
std::vector<const MetaContext*> Transmission::requested_contexts(Request& request) const {
  if (session_.contexts.empty()) {
    throw Refusal(WireError::einval, "No context of block status is selected");
  }
  if (!request.has(command_flag::payload_length) || !session_.extended) return session_.contexts;
  const std::span<const std::byte> payload = request.payload;
  const auto bad = [](std::string_view text) {
    return Refusal(WireError::einval, std::string(text));
  };
  if (payload.size() < 12 || payload.size() % 4 != 0) throw bad("Malformed payload");
  BigEndianReader reader(payload);
  request.length = reader.u64();
  if (reader.remaining() / 4 > session_.contexts.size()) throw bad("Too many contexts");
  std::vector<const MetaContext*> chosen;
  while (reader.remaining() > 0) {
    const std::uint32_t id = reader.u32();
    const auto found =
        std::ranges::find_if(session_.contexts, [&](const auto* c) { return c->id == id; });
    if (found == session_.contexts.end()) throw bad("Unknown context");
    if (std::ranges::find(chosen, *found) != chosen.end()) throw bad("The same context twice");
    chosen.push_back(*found);
  }
  if (!GuestRange{GuestOffset(request.offset), request.length}.ends_by(target_.size())) {
    throw bad("The request reaches past the end of the export");
  }
  return chosen;
}

Task<void> Transmission::block_status(Request& request) {
  const std::vector<const MetaContext*> contexts = requested_contexts(request);
  if (request.length == 0) throw Refusal(WireError::einval, "The length is 0");
  const GuestRange range{GuestOffset(request.offset), request.length};
  const std::size_t max_runs = request.has(command_flag::req_one) ? 1 : max_status_runs;
  for (std::size_t i = 0; i < contexts.size(); ++i) {
    const std::vector<StatusRun> runs = co_await target_.status(*contexts[i], range, max_runs);
    const auto last = i + 1 == contexts.size() ? Replies::Last::yes : Replies::Last::no;
    replies_.status_chunk(request, contexts[i]->id, runs, last);
  }
}

}  // namespace vise::nbd
