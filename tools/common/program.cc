#include "tools/common/program.h"

#include <csignal>
#include <new>
#include <vector>

#include "tools/common/long_work.h"
#include "tools/common/progress.h"
#include "vise/error.h"

namespace vise::tools {

int run_program(int argc, char** argv,
                int (*main_of)(const Program& program, std::span<const std::string> words)) {
  std::signal(SIGPIPE, SIG_IGN);
  block_progress_signal();
  const Program program{program_name(argv[0])};
  const std::vector<std::string> words(argv + (argc > 0 ? 1 : 0), argv + argc);
  return finish_output(program, main_of(program, words));
}

int report_failure(const Program& program, const std::function<int()>& body) {
  try {
    return body();
  } catch (const Error& error) {
    print_error(program, error);
  } catch (const std::bad_alloc&) {
    print_error(program, "Out of memory");
  } catch (const Interrupted& interrupted) {
    die_of(interrupted.signal());
  }
  return 1;
}

bool answer_help(const Program& program, const Arguments& arguments,
                 const std::function<std::string()>& help_text) {
  if (arguments.has('h')) {
    print(help_text());
    return true;
  }
  if (arguments.has('V')) print(version_text(program));
  return arguments.has('V');
}

}  // namespace vise::tools
