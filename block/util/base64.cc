#include "util/base64.h"

#include <cerrno>
#include <cstdint>

#include "vise/error.h"

namespace vise {

std::string decode_base64(std::string_view text) {
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string result;
  std::uint32_t bits = 0;
  unsigned count = 0;    // of digits and padding so far
  unsigned padding = 0;  // of them
  for (const char c : text) {
    if (c == ' ' || c == '\t' || c == '\r' || c == '\n') continue;
    const std::size_t digit = digits.find(c);
    if (c == '=' && count % 4 >= 2) {
      ++padding;
    } else if (digit == std::string_view::npos || padding > 0) {
      throw Error(EINVAL, "The text is not base64");
    }
    bits = bits << 6 | (c == '=' ? 0 : static_cast<std::uint32_t>(digit));
    if (++count % 4 != 0) continue;
    for (unsigned byte = 0; byte < 3 - padding; ++byte) {
      result += static_cast<char>(bits >> (16 - 8 * byte) & 0xff);
    }
    bits = 0;
  }
  if (count % 4 != 0) throw Error(EINVAL, "The text is not base64: it ends too early");
  return result;
}

}  // namespace vise
