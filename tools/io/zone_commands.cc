// zone_*: there is no driver for zoned devices, so after a look at their operands they all fail.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "tools/io/command.h"

namespace vise::tools {

Task<void> run_zone(Call& call) {
  call.size_operand(0);
  call.size_operand(1);
  std::string what(call.command.name);
  std::ranges::replace(what, '_', ' ');
  Call::fail(fmt::format("{} failed: {}", what, std::strerror(ENOTSUP)));
  co_return;
}

}  // namespace vise::tools
