// Base64 as in RFC 4648: what secrets may be written in.
#pragma once

#include <string>
#include <string_view>

namespace vise {

/// The bytes that `text` stands for; blanks and line ends are skipped. Throws Error(EINVAL).
std::string decode_base64(std::string_view text);

}  // namespace vise
