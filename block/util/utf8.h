// UTF-8, one code point at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace vise {

struct Utf8CodePoint {
  std::uint32_t value;
  std::size_t length;  // bytes, 1 to 4
};

/// The code point at the start of `text`; nothing if `text` is empty or does not start with one
/// (overlong forms, surrogates and what lies above U+10FFFF are none).
std::optional<Utf8CodePoint> decode_utf8(std::string_view text);

/// Appends `code_point` (at most 0x10ffff, no surrogate).
void append_utf8(std::string& text, std::uint32_t code_point);

}  // namespace vise
