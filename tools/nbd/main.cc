// vise-nbd: serves an image over NBD, or lists what a server has.
#include <fmt/format.h>

#include <cstdio>
#include <span>
#include <string>

#include "tools/common/output.h"
#include "tools/common/program.h"
#include "tools/nbd/background.h"
#include "tools/nbd/list.h"
#include "tools/nbd/options.h"
#include "tools/nbd/serve.h"
#include "vise/error.h"

namespace vise::tools {
namespace {

int run(const Program& program, std::span<const std::string> words) {
  Arguments arguments = parse_arguments(program.name, words, nbd_options());
  if (answer_help(program, arguments, [&] { return nbd_help(program); })) return 0;
  const unsigned sockets = inherited_sockets();
  if (sockets > 1) {
    throw Error(EINVAL, fmt::format("systemd has passed {} sockets, one is allowed", sockets));
  }
  const NbdArguments parsed = nbd_arguments(std::move(arguments), sockets == 1);
  if (parsed.mode == NbdMode::list) return list_exports(program, parsed);
  return serve_image(program, parsed);
}

int main_of(const Program& program, std::span<const std::string> words) {
  try {
    return report_failure(program, [&] { return run(program, words); });
  } catch (const UsageError& error) {
    if (*error.what() != '\0') print_error(program, error.what());
    std::fputs(fmt::format("Try '{} --help' for more information.\n", program.name).c_str(),
               stderr);
    return 1;
  }
}

}  // namespace
}  // namespace vise::tools

int main(int argc, char** argv) {
  return vise::tools::run_program(argc, argv, vise::tools::main_of);
}
