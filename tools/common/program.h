// What main() does in each of the programs.
#pragma once

#include <functional>
#include <span>
#include <string>

#include "tools/common/arguments.h"
#include "tools/common/output.h"

namespace vise::tools {

/// Runs `main_of` on the words of the command line; gives the exit status.
int run_program(int argc, char** argv,
                int (*main_of)(const Program& program, std::span<const std::string> words));

/// The value of `body`, or 1 after a message about the Error it threw. A UsageError passes.
int report_failure(const Program& program, const std::function<int()>& body);

/// -h and -V: true if there was one and `help_text` or the version has been printed.
bool answer_help(const Program& program, const Arguments& arguments,
                 const std::function<std::string()>& help_text);

}  // namespace vise::tools
