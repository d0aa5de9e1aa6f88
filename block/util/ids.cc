#include "util/ids.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "vise/error.h"

namespace vise {

bool is_id(std::string_view text) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  return !text.empty() && letter(text.front()) && std::ranges::all_of(text, [&](char c) {
    return letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  });
}

void require_id(const std::string& id, std::string_view what) {
  if (is_id(id)) return;
  throw Error(EINVAL, fmt::format("'{}' is not an id of {}: letters, digits, '-', '.' and '_', the "
                                  "first one a letter",
                                  id, what));
}

}  // namespace vise
