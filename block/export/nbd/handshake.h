// The handshake of one connection: from the greeting to the choice of an export.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "export/nbd/input.h"
#include "export/nbd/request.h"
#include "vise/util/endian.h"

namespace vise::nbd {

class Server;

class Handshake {
 public:
  Handshake(Server& server, Stream& stream, Input& input)
      : server_(server), stream_(stream), input_(input) {}

  /// Nothing if the client has left. The export of the result is entered (Server::enter()). Throws
  /// Error that says what the client did wrong.
  Task<std::optional<Session>> run();

 private:
  using Bytes = std::span<const std::byte>;
  Task<void> greet();
  Task<bool> read_flags();
  Task<std::optional<Session>> negotiate();
  Task<bool> skip_oversized(std::uint32_t option, std::uint32_t length);
  Task<void> dispatch(Option option, Bytes data);
  bool needs_tls(Option option) const;
  Task<void> start_tls(Bytes data);
  Task<void> choose_by_name(Bytes data);
  Task<void> list(Bytes data);
  Task<void> info(Option option, Bytes data);
  Task<void> structured_reply(Bytes data);
  Task<void> extended_headers(Bytes data);
  Task<void> list_contexts(Bytes data);
  Task<void> set_contexts(Bytes data);
  Task<void> send_export_info(Export& target, Option option, bool want_name);
  Task<void> send_context(Option option, std::uint32_t id, std::string_view name);
  Task<void> enter(std::shared_ptr<Export> target);

  std::uint16_t flags_of(const Export& target, Option option) const;
  std::vector<const MetaContext*> contexts_for(const Export& target) const;

  Task<void> reply(Option option, OptionReply type, Bytes data);
  Task<void> acknowledge(Option option);
  Task<void> refuse(Option option, OptionReply type, std::string_view text);
  Task<void> send(Bytes data);

  Server& server_;
  Stream& stream_;
  Input& input_;
  Session session_;
  bool fixed_ = false;
  bool no_zeroes_ = false;
  bool ended_ = false;                               // by the client, or with a chosen export
  std::shared_ptr<Export> context_export_;           // of the last SET_META_CONTEXT
  std::vector<const MetaContext*> chosen_contexts_;  // by it; of context_export_
};

}  // namespace vise::nbd
