#include "export/nbd/request.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "vise/util/endian.h"

namespace vise::nbd {

namespace {

// Continues a header.
class HeaderWriter : public BigEndianWriter {
 public:
  explicit HeaderWriter(Message& message)
      : BigEndianWriter(std::span(message.header).subspan(message.header_size)),
        message_(message) {}
  ~HeaderWriter() { message_.header_size += position(); }

 private:
  Message& message_;
};

}  // namespace

// The head of a structured or extended chunk with `payload` bytes behind it.
Message Replies::chunk(const Request& request, Chunk type, std::uint64_t payload, Last last) const {
  Message message;
  message.last = last == Last::yes;
  if (message.last) message.charge = request.charge;
  HeaderWriter head(message);
  head.u32(session_.extended ? extended_reply_magic : structured_reply_magic);
  head.u16(message.last ? chunk_done : 0);
  head.u16(static_cast<std::uint16_t>(type));
  head.u64(request.cookie);
  if (session_.extended) {
    head.u64(request.offset);
    head.u64(payload);
  } else {
    head.u32(static_cast<std::uint32_t>(payload));
  }
  return message;
}

Message Replies::simple(const Request& request, WireError error) const {
  Message message;
  message.charge = request.charge;
  HeaderWriter head(message);
  head.u32(simple_reply_magic);
  head.u32(static_cast<std::uint32_t>(error));
  head.u64(request.cookie);
  return message;
}

void Replies::success(const Request& request) {
  const bool chunked =
      session_.extended || (session_.structured && request.command == Command::read);
  output_.push(chunked ? chunk(request, Chunk::none, 0, Last::yes)
                       : simple(request, WireError::none));
}

void Replies::failure(const Request& request, WireError error, std::string_view text) {
  if (!session_.structured) {
    output_.push(simple(request, error));
    return;
  }
  text = text.substr(0, max_string);
  Message message = chunk(request, Chunk::error, 6 + text.size(), Last::yes);
  {
    HeaderWriter head(message);
    head.u32(static_cast<std::uint32_t>(error));
    head.u16(static_cast<std::uint16_t>(text.size()));
  }
  message.storage = Buffer(text.size());
  if (!text.empty()) std::memcpy(message.storage.data(), text.data(), text.size());
  message.data = message.storage;
  output_.push(std::move(message));
}

void Replies::data(const Request& request, Buffer data) {
  if (session_.structured) {
    const std::span<const std::byte> bytes = data;
    data_chunk(request, request.offset, bytes, std::move(data), Last::yes);
    return;
  }
  Message message = simple(request, WireError::none);
  message.storage = std::move(data);
  message.data = message.storage;
  output_.push(std::move(message));
}

void Replies::data_chunk(const Request& request, std::uint64_t offset,
                         std::span<const std::byte> data, Buffer storage, Last last) {
  Message message = chunk(request, Chunk::offset_data, 8 + data.size(), last);
  HeaderWriter(message).u64(offset);
  message.storage = std::move(storage);
  message.data = data;
  output_.push(std::move(message));
}

void Replies::hole_chunk(const Request& request, std::uint64_t offset, std::uint64_t length,
                         Last last) {
  Message message = chunk(request, Chunk::offset_hole, 12, last);
  {
    HeaderWriter head(message);
    head.u64(offset);
    head.u32(static_cast<std::uint32_t>(length));
  }
  output_.push(std::move(message));
}

void Replies::status_chunk(const Request& request, std::uint32_t context,
                           std::span<const StatusRun> runs, Last last) {
  const std::size_t run_size = session_.extended ? 16 : 8;
  const std::size_t fixed = session_.extended ? 8 : 4;
  const Chunk type = session_.extended ? Chunk::block_status_ext : Chunk::block_status;
  Message message = chunk(request, type, fixed + runs.size() * run_size, last);
  {
    HeaderWriter head(message);
    head.u32(context);
    if (session_.extended) head.u32(static_cast<std::uint32_t>(runs.size()));
  }
  message.storage = Buffer(runs.size() * run_size);
  BigEndianWriter body(message.storage.span());
  for (const StatusRun& run : runs) {
    if (session_.extended) {
      body.u64(run.length);
      body.u64(run.status);
    } else {
      body.u32(static_cast<std::uint32_t>(std::min<std::uint64_t>(run.length, UINT32_MAX)));
      body.u32(run.status);
    }
  }
  message.data = message.storage;
  output_.push(std::move(message));
}

}  // namespace vise::nbd
