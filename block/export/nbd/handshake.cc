#include "export/nbd/handshake.h"

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <utility>

#include "export/nbd/option_data.h"
#include "export/nbd/server.h"

namespace vise::nbd {

namespace {

constexpr std::uint32_t max_option = 64u << 10;   // bytes of data that are looked at
constexpr std::uint32_t max_skipped = 32u << 20;  // bytes of data that are read and refused
constexpr std::size_t options_per_client = 256;   // and some for each export
constexpr std::size_t options_per_export = 8;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

bool is_known(Option option) {
  const auto number = static_cast<std::uint32_t>(option);
  return number >= 1 && number <= 11 && number != 4;
}

}  // namespace

Task<void> Handshake::send(Bytes data) {
  iovec part{const_cast<std::byte*>(data.data()), data.size()};
  co_await stream_.send(std::span(&part, 1));
}

Task<void> Handshake::reply(Option option, OptionReply type, Bytes data) {
  std::array<std::byte, 20> head;
  BigEndianWriter writer(head);
  writer.u64(option_reply_magic);
  writer.u32(static_cast<std::uint32_t>(option));
  writer.u32(static_cast<std::uint32_t>(type));
  writer.u32(static_cast<std::uint32_t>(data.size()));
  std::array<iovec, 2> parts = {iovec{head.data(), head.size()},
                                iovec{const_cast<std::byte*>(data.data()), data.size()}};
  co_await stream_.send(std::span(parts).first(data.empty() ? 1 : 2));
}

Task<void> Handshake::acknowledge(Option option) {
  co_await reply(option, OptionReply::ack, Bytes());
}

Task<void> Handshake::refuse(Option option, OptionReply type, std::string_view text) {
  co_await reply(option, type, bytes_of(text));
}

Task<std::optional<Session>> Handshake::run() {
  co_await greet();
  const bool there = co_await read_flags();
  if (!there) co_return std::nullopt;
  co_return co_await negotiate();
}

Task<void> Handshake::greet() {
  std::array<std::byte, 18> greeting;
  BigEndianWriter writer(greeting);
  writer.u64(greeting_magic);
  writer.u64(option_magic);
  writer.u16(handshake_fixed_newstyle | handshake_no_zeroes);
  co_await send(greeting);
}

// False if the client has left.
Task<bool> Handshake::read_flags() {
  const Bytes bytes = co_await input_.take(4);
  if (bytes.empty()) co_return false;
  const std::uint32_t flags = BigEndianReader(bytes).u32();
  if ((flags & ~std::uint32_t{handshake_fixed_newstyle | handshake_no_zeroes}) != 0) {
    throw Error(EPROTO, fmt::format("The client has unknown flags {:#x}", flags));
  }
  fixed_ = (flags & handshake_fixed_newstyle) != 0;
  no_zeroes_ = (flags & handshake_no_zeroes) != 0;
  co_return true;
}

Task<std::optional<Session>> Handshake::negotiate() {
  std::vector<std::byte> data;
  for (std::size_t count = 0; !ended_; ++count) {
    if (count == options_per_client + options_per_export * server_.exports().size()) {
      throw Error(EPROTO, "The client negotiates without end");
    }
    const Bytes head = co_await input_.take(16);
    if (head.empty()) co_return std::nullopt;
    BigEndianReader reader(head);
    const std::uint64_t magic = reader.u64();
    const std::uint32_t option = reader.u32();
    const std::uint32_t length = reader.u32();
    if (magic != option_magic) {
      throw Error(EPROTO, fmt::format("Bad magic number {:#x} of an option", magic));
    }
    if (!fixed_ && Option{option} != Option::export_name) {
      throw Error(EPROTO, fmt::format("Option {} without fixed newstyle", option));
    }
    const bool oversized = co_await skip_oversized(option, length);
    if (oversized) continue;
    data.resize(length);
    co_await input_.read(data);
    co_await dispatch(Option{option}, data);
  }
  if (session_.target == nullptr) co_return std::nullopt;  // aborted
  co_return std::optional<Session>(std::move(session_));
}

// True if the data of the option is more than anybody needs; it has been answered then.
Task<bool> Handshake::skip_oversized(std::uint32_t option, std::uint32_t length) {
  if (length <= max_option) co_return false;
  if (length > max_skipped || Option{option} == Option::export_name) {
    throw Error(EPROTO, fmt::format("Option {} has {} bytes of data", option, length));
  }
  co_await input_.skip(length);
  const auto type = is_known(Option{option}) ? OptionReply::err_too_big : OptionReply::err_unsup;
  co_await refuse(Option{option}, type, "The option is too long");
  co_return true;
}

Task<void> Handshake::dispatch(Option option, Bytes data) {
  OptionReply error = OptionReply::err_invalid;
  std::string text;
  try {
    if (needs_tls(option)) throw Refused(OptionReply::err_tls_reqd, "TLS is required");
    switch (option) {
      case Option::export_name:
        co_await choose_by_name(data);
        co_return;
      case Option::abort:
        ended_ = true;
        co_await acknowledge(option);
        co_return;
      case Option::list:
        co_await list(data);
        co_return;
      case Option::starttls:
        co_await start_tls(data);
        co_return;
      case Option::info:
      case Option::go:
        co_await info(option, data);
        co_return;
      case Option::structured_reply:
        co_await structured_reply(data);
        co_return;
      case Option::list_meta_context:
        co_await list_contexts(data);
        co_return;
      case Option::set_meta_context:
        co_await set_contexts(data);
        co_return;
      case Option::extended_headers:
        co_await extended_headers(data);
        co_return;
    }
    throw Refused(OptionReply::err_unsup, "Unknown option");
  } catch (const Refused& refused) {
    error = refused.type();
    text = refused.text();
  }
  co_await refuse(option, error, text);
}

bool Handshake::needs_tls(Option option) const {
  if (server_.options().tls == nullptr || stream_.has_tls()) return false;
  if (option == Option::export_name) {
    throw Error(EACCES, "The client asked for an export without TLS");
  }
  return option != Option::starttls && option != Option::abort;
}

Task<void> Handshake::start_tls(Bytes data) {
  require_empty(data);
  if (server_.options().tls == nullptr) {
    throw Refused(OptionReply::err_policy, "TLS is not configured");
  }
  if (stream_.has_tls()) throw Refused(OptionReply::err_invalid, "TLS is in use already");
  // Whoever put bytes behind the option, in plain text, must not have them taken for the client's.
  if (input_.buffered() > 0) throw Error(EPROTO, "The client sent plain text where TLS begins");
  co_await acknowledge(Option::starttls);
  co_await stream_.start_tls(server_.options().tls);
  const auto& authorization = server_.options().authorization;
  if (authorization != nullptr && !authorization->allows(stream_.peer_name())) {
    throw Error(EACCES,
                fmt::format("The client '{}' is not authorized", printable(stream_.peer_name())));
  }
  session_ = Session();
  context_export_ = nullptr;
  chosen_contexts_.clear();
}

Task<void> Handshake::choose_by_name(Bytes data) {
  const std::string name = export_name_of(data);
  std::shared_ptr<Export> target = server_.find(name);
  if (target == nullptr) {
    throw Error(ENOENT,
                fmt::format("The client asked for an unknown export '{}'", printable(name)));
  }
  if (session_.extended) {
    throw Error(EPROTO, "The client asked for extended headers and an old way to choose an export");
  }
  co_await enter(target);
  if (session_.target == nullptr) throw Error(ECANCELED, "The export is gone");
  std::array<std::byte, 134> answer;
  BigEndianWriter writer(answer);
  writer.u64(target->size());
  writer.u16(flags_of(*target, Option::export_name));
  if (!no_zeroes_) writer.zeroes(124);
  co_await send(std::span(answer).first(writer.position()));
}

Task<void> Handshake::list(Bytes data) {
  require_empty(data);
  const std::vector<std::shared_ptr<Export>> exports = server_.exports();
  std::vector<std::byte> entry;
  for (const std::shared_ptr<Export>& target : exports) {
    const std::string& name = target->name();
    entry.resize(4 + name.size() + target->description().size());
    BigEndianWriter writer(entry);
    writer.u32(static_cast<std::uint32_t>(name.size()));
    writer.bytes(bytes_of(name));
    writer.bytes(bytes_of(target->description()));
    co_await reply(Option::list, OptionReply::server, entry);
  }
  co_await acknowledge(Option::list);
}

Task<void> Handshake::structured_reply(Bytes data) {
  require_empty(data);
  if (session_.extended) {
    throw Refused(OptionReply::err_ext_header_reqd, "Extended headers are in use");
  }
  if (session_.structured) throw Refused(OptionReply::err_invalid, "That is set already");
  session_.structured = true;
  co_await acknowledge(Option::structured_reply);
}

Task<void> Handshake::extended_headers(Bytes data) {
  require_empty(data);
  if (session_.extended) throw Refused(OptionReply::err_invalid, "That is set already");
  session_.extended = session_.structured = true;
  co_await acknowledge(Option::extended_headers);
}

std::uint16_t Handshake::flags_of(const Export& target, Option option) const {
  unsigned flags = flag::has_flags | flag::send_flush | flag::send_fua | flag::send_cache;
  if (target.writable())
    flags |= flag::send_trim | flag::send_write_zeroes | flag::send_fast_zero;
  else
    flags |= flag::read_only;
  if (session_.structured) flags |= flag::send_df;
  if (server_.multi_conn()) flags |= flag::can_multi_conn;
  const bool offers_payload = option == Option::info || !contexts_for(target).empty();
  if (session_.extended && offers_payload) flags |= flag::block_status_payload;
  return static_cast<std::uint16_t>(flags);
}

Task<void> Handshake::info(Option option, Bytes data) {
  const InfoRequest request = parse_info(data);
  std::shared_ptr<Export> target = server_.find(request.name);
  if (target == nullptr) throw Refused(OptionReply::err_unknown, "There is no such export");
  if (option == Option::go) {
    co_await enter(target);
    if (session_.target == nullptr) throw Refused(OptionReply::err_unknown, "The export is gone");
  }
  co_await send_export_info(*target, option, request.wants(Info::name));
  co_await acknowledge(option);
}

Task<void> Handshake::send_export_info(Export& target, Option option, bool want_name) {
  std::array<std::byte, 14> answer;
  BigEndianWriter size(answer);
  size.u16(static_cast<std::uint16_t>(Info::export_));
  size.u64(target.size());
  size.u16(flags_of(target, option));
  co_await reply(option, OptionReply::info, std::span(answer).first(size.position()));
  const std::array texts = {std::pair(Info::name, &target.name()),
                            std::pair(Info::description, &target.description())};
  for (const auto& [type, text] : texts) {
    if (type == Info::name ? !want_name : text->empty()) continue;
    std::vector<std::byte> with_text(2 + text->size());
    BigEndianWriter writer(with_text);
    writer.u16(static_cast<std::uint16_t>(type));
    writer.bytes(bytes_of(*text));
    co_await reply(option, OptionReply::info, with_text);
  }
  BigEndianWriter blocks(answer);
  blocks.u16(static_cast<std::uint16_t>(Info::block_size));
  blocks.u32(1);
  blocks.u32(target.preferred_block_size());
  blocks.u32(max_payload);
  co_await reply(option, OptionReply::info, answer);
}

// The selected contexts, if they were selected for this export.
std::vector<const MetaContext*> Handshake::contexts_for(const Export& target) const {
  if (context_export_.get() != &target) return {};
  return chosen_contexts_;
}

// Waits for a place, then ends the handshake with that export; unless it is about to go.
Task<void> Handshake::enter(std::shared_ptr<Export> target) {
  const bool entered = co_await server_.enter(*target, stream_);
  if (!entered) co_return;
  session_.contexts = contexts_for(*target);
  session_.target = std::move(target);
  ended_ = true;
}

Task<void> Handshake::send_context(Option option, std::uint32_t id, std::string_view name) {
  std::vector<std::byte> answer(4 + name.size());
  BigEndianWriter writer(answer);
  writer.u32(id);
  writer.bytes(bytes_of(name));
  co_await reply(option, OptionReply::meta_context, answer);
}

Task<void> Handshake::list_contexts(Bytes data) {
  const ContextRequest request = parse_contexts(data);
  const std::shared_ptr<Export> target = server_.find(request.name);
  if (target == nullptr) throw Refused(OptionReply::err_unknown, "There is no such export");
  const std::vector<MetaContext> contexts = target->contexts();
  for (const MetaContext& context : contexts) {
    if (request.lists(context.name)) {
      co_await send_context(Option::list_meta_context, 0, context.name);
    }
  }
  co_await acknowledge(Option::list_meta_context);
}

Task<void> Handshake::set_contexts(Bytes data) {
  context_export_ = nullptr;  // whatever comes of it
  chosen_contexts_.clear();
  if (!session_.structured) {
    throw Refused(OptionReply::err_invalid, "Block status needs structured replies");
  }
  const ContextRequest request = parse_contexts(data);
  const std::shared_ptr<Export> target = server_.find(request.name);
  if (target == nullptr) throw Refused(OptionReply::err_unknown, "There is no such export");
  context_export_ = target;
  for (const MetaContext& context : target->contexts()) {
    if (request.selects(context.name)) chosen_contexts_.push_back(&context);
  }
  const std::vector<MetaContext> contexts = target->contexts();
  for (const MetaContext& context : contexts) {
    if (!request.selects(context.name)) continue;
    co_await send_context(Option::set_meta_context, context.id, context.name);
  }
  co_await acknowledge(Option::set_meta_context);
}

}  // namespace vise::nbd
