// vise-nbd: serves an image over NBD, or lists what a server has.
#include <fmt/format.h>

#include <csignal>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "tools/common/output.h"
#include "tools/nbd/background.h"
#include "tools/nbd/list.h"
#include "tools/nbd/options.h"
#include "tools/nbd/serve.h"
#include "vise/error.h"

namespace vise::tools {
namespace {

int run(const Program& program, std::span<const std::string> words) {
  Arguments arguments = parse_arguments(program.name, words, nbd_options());
  if (arguments.has('h')) {
    print(nbd_help(program));
    return 0;
  }
  if (arguments.has('V')) {
    print(version_text(program));
    return 0;
  }
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
    return run(program, words);
  } catch (const UsageError& error) {
    if (*error.what() != '\0') print_error(program, error.what());
    std::fputs(fmt::format("Try '{} --help' for more information.\n", program.name).c_str(),
               stderr);
  } catch (const Error& error) {
    print_error(program, error);
  } catch (const std::bad_alloc&) {
    print_error(program, "Out of memory");
  }
  return 1;
}

}  // namespace
}  // namespace vise::tools

int main(int argc, char** argv) {
  using namespace vise::tools;
  std::signal(SIGPIPE, SIG_IGN);
  const Program program{program_name(argv[0])};
  const std::vector<std::string> words(argv + (argc > 0 ? 1 : 0), argv + argc);
  return finish_output(program, main_of(program, words));
}
