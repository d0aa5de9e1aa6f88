// The data of options, as clients send it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "export/nbd/protocol.h"

namespace vise::nbd {

/// An option is answered with an error; the handshake goes on.
class Refused {
 public:
  Refused(OptionReply type, std::string_view text) : type_(type), text_(text) {}
  OptionReply type() const { return type_; }
  const std::string& text() const { return text_; }

 private:
  OptionReply type_;
  std::string text_;
};

// All of them throw Refused(err_invalid) for data that is not well-formed.

void require_empty(std::span<const std::byte> data);

/// The whole of `data` as the name of an export. Throws Error(EPROTO): nobody can be told.
std::string export_name_of(std::span<const std::byte> data);

/// INFO and GO.
struct InfoRequest {
  std::string name;
  std::vector<std::uint16_t> types;
  bool wants(Info type) const;
};
InfoRequest parse_info(std::span<const std::byte> data);

/// LIST_META_CONTEXT and SET_META_CONTEXT.
struct ContextRequest {
  std::string name;
  std::vector<std::string> queries;  // none longer than 4096 bytes: such name nothing we have
  bool all = false;                  // no queries at all

  bool selects(std::string_view context) const;
  /// For LIST: everything without queries, and the bare beginnings "base:", "qemu:" and
  /// "qemu:dirty-bitmap:" match all behind them.
  bool lists(std::string_view context) const;
};
ContextRequest parse_contexts(std::span<const std::byte> data);

/// `text` from a client in a form that can be shown to people: at most 64 bytes of ASCII.
std::string printable(std::string_view text);

}  // namespace vise::nbd
