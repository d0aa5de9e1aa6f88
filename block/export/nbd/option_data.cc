#include "export/nbd/option_data.h"

#include <algorithm>
#include <cerrno>

#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::nbd {

namespace {

constexpr std::uint32_t max_queries = 64;

[[noreturn]] void refuse(std::string_view text) { throw Refused(OptionReply::err_invalid, text); }

std::string text_of(std::span<const std::byte> bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

// A length, and the bytes that follow it.
std::string take_string(BigEndianReader& reader) {
  if (reader.remaining() < 4) refuse("The data is too short");
  const std::uint32_t length = reader.u32();
  if (length > reader.remaining()) refuse("A length reaches past the end of the data");
  return text_of(reader.take(length));
}

std::string take_name(BigEndianReader& reader) {
  std::string name = take_string(reader);
  if (name.size() > max_string) refuse("The name of the export is too long");
  if (name.find('\0') != std::string::npos) refuse("The name of the export has a zero byte");
  return name;
}

}  // namespace

void require_empty(std::span<const std::byte> data) {
  if (!data.empty()) refuse("This option takes no data");
}

std::string export_name_of(std::span<const std::byte> data) {
  std::string name = text_of(data);
  if (name.size() > max_string || name.find('\0') != std::string::npos) {
    throw Error(EPROTO, "The client asked for an export by a name that cannot be");
  }
  return name;
}

bool InfoRequest::wants(Info type) const {
  return std::ranges::find(types, static_cast<std::uint16_t>(type)) != types.end();
}

InfoRequest parse_info(std::span<const std::byte> data) {
  BigEndianReader reader(data);
  InfoRequest request;
  request.name = take_name(reader);
  if (reader.remaining() < 2) refuse("The data is too short");
  const std::uint16_t count = reader.u16();
  if (reader.remaining() != std::size_t{count} * 2) refuse("The number of requests is wrong");
  for (std::uint16_t i = 0; i < count; ++i) request.types.push_back(reader.u16());
  return request;
}

bool ContextRequest::selects(std::string_view context) const {
  return std::ranges::find(queries, context) != queries.end();
}

bool ContextRequest::lists(std::string_view context) const {
  return all || std::ranges::any_of(queries, [&](const std::string& query) {
           if (query == context) return true;
           const bool open = query == "base:" || query == "qemu:" || query == dirty_bitmap_prefix;
           return open && context.starts_with(query);
         });
}

ContextRequest parse_contexts(std::span<const std::byte> data) {
  BigEndianReader reader(data);
  ContextRequest request;
  request.name = take_name(reader);
  if (reader.remaining() < 4) refuse("The data is too short");
  const std::uint32_t count = reader.u32();
  if (count > reader.remaining() / 4) refuse("The number of queries is wrong");
  if (count > max_queries) throw Refused(OptionReply::err_too_big, "Too many queries");
  for (std::uint32_t i = 0; i < count; ++i) {
    std::string query = take_string(reader);
    if (query.size() <= max_string) request.queries.push_back(std::move(query));
  }
  if (reader.remaining() != 0) refuse("There is data behind the last query");
  request.all = count == 0;
  return request;
}

std::string printable(std::string_view text) {
  std::string result(text.substr(0, 64));
  std::ranges::replace_if(result, [](char c) { return c < ' ' || c > '~'; }, '?');
  return result;
}

}  // namespace vise::nbd
