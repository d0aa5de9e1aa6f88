// Error: errno plus a chain of contexts.
#include "vise/error.h"

#include <cstring>

namespace vise {

Error Error::system_error(int code, std::string_view context) {
  Error error(code, strerrordesc_np(code) != nullptr ? strerrordesc_np(code) : "Unknown error");
  if (!context.empty()) error.add_context(context);
  return error;
}

void Error::add_context(std::string_view context) {
  std::string message;
  message.reserve(context.size() + 2 + message_.size());
  message.append(context).append(": ").append(message_);
  message_ = std::move(message);
}

}  // namespace vise
