// zone_*: there is no driver for zoned devices, so after a look at their operands they all fail.
#include <fmt/format.h>

#include <cerrno>
#include <cstring>

#include "tools/io/command.h"

namespace vise::tools {

namespace {

void refuse(const Call& call, std::string_view what) {
  call.size_operand(0);
  call.size_operand(1);
  Call::fail(fmt::format("{} failed: {}", what, std::strerror(ENOTSUP)));
}

}  // namespace

Task<void> run_zone_report(Call& call) {
  refuse(call, "zone report");
  co_return;
}
Task<void> run_zone_open(Call& call) {
  refuse(call, "zone open");
  co_return;
}
Task<void> run_zone_close(Call& call) {
  refuse(call, "zone close");
  co_return;
}
Task<void> run_zone_finish(Call& call) {
  refuse(call, "zone finish");
  co_return;
}
Task<void> run_zone_reset(Call& call) {
  refuse(call, "zone reset");
  co_return;
}
Task<void> run_zone_append(Call& call) {
  refuse(call, "zone append");
  co_return;
}

}  // namespace vise::tools
