// Requests as they come in, and the replies to them in the form that was negotiated.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "export/nbd/export.h"
#include "export/nbd/output.h"
#include "export/nbd/protocol.h"
#include "vise/buffer.h"

namespace vise::nbd {

/// What the handshake has led to.
struct Session {
  std::shared_ptr<Export> target;
  bool structured = false;                   // with extended too
  bool extended = false;                     // 64-bit headers
  std::vector<const MetaContext*> contexts;  // selected for block status
};

struct Request {
  std::uint16_t flags = 0;
  Command command = Command::read;
  std::uint64_t cookie = 0;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;  // bytes it is about
  Buffer payload;
  std::uint64_t charge = 0;  // bytes of the client's budget it holds
  bool has(std::uint16_t flag) const { return (flags & flag) != 0; }
};

/// Makes the messages that answer requests of one session.
class Replies {
 public:
  Replies(const Session& session, Output& output) : session_(session), output_(output) {}

  void success(const Request& request);
  /// `text` is for people; where errors are mere numbers it is left out.
  void failure(const Request& request, WireError error, std::string_view text);
  /// A whole read: `data` is all of it.
  void data(const Request& request, Buffer data);
  /// Part of a structured read; `data` borrows from `storage`, which may come with a later part.
  enum class Last { no, yes };
  void data_chunk(const Request& request, std::uint64_t offset, std::span<const std::byte> data,
                  Buffer storage, Last last);
  void hole_chunk(const Request& request, std::uint64_t offset, std::uint64_t length, Last last);
  void status_chunk(const Request& request, std::uint32_t context, std::span<const StatusRun> runs,
                    Last last);

 private:
  Message chunk(const Request& request, Chunk type, std::uint64_t payload, Last last) const;
  Message simple(const Request& request, WireError error) const;

  const Session& session_;
  Output& output_;
};

}  // namespace vise::nbd
