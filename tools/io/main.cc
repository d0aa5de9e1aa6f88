// vise-io: one command after the other on one image.
#include <fmt/format.h>

#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "tools/common/arguments.h"
#include "tools/common/objects.h"
#include "tools/common/open.h"
#include "tools/common/output.h"
#include "tools/common/program.h"
#include "tools/common/shared_options.h"
#include "tools/io/command.h"
#include "tools/io/prompt.h"
#include "vise/error.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'c', "cmd", "COMMAND", "run COMMAND; repeatable; without any, commands are read from stdin"},
    shared::format,
    shared::image_opts,
    {'r', "read-only", nullptr, "open read-only"},
    {'s', "snapshot", nullptr, "writes go to a temporary overlay"},
    {'n', "nocache", nullptr, "past the host's page cache, like -t none"},
    {'C', "copy-on-read", nullptr, "copy on read"},
    {'m', "misalign", nullptr, "use buffers that are not aligned"},
    {'k', "native-aio", nullptr, "like -i native"},
    {'i', "aio", "AIO", "threads, native or io_uring"},
    {'t', "cache", "CACHE", "writeback, none, writethrough, directsync or unsafe"},
    {'d', "discard", "MODE", "what discard does: ignore (off) or unmap (on, default)"},
    {'U', "force-share", nullptr, "others may write the image meanwhile; needs -r"},
    {key::object, "object", "OBJECT", "an object that nodes refer to: TYPE,id=ID,…, or help"},
    shared::trace,
    shared::help,
    shared::version,
};

std::string help_text(const Program& program) {
  return fmt::format(
      "Usage: {} [OPTION]... [-c COMMAND]... [FILE]\nRuns commands on a disk "
      "image, for tests and repairs.\n\n{}\n'{} -c help' lists the commands.\n",
      program.name, describe_options(options), program.name);
}

ImageArguments image_arguments(const Arguments& arguments) {
  ImageArguments image;
  image.read_only = false;
  image.discard_unmap = true;
  for (const Arguments::Option& option : arguments.options) {
    if (option.key == 'f')
      image.format = option.value;
    else if (option.key == key::image_opts)
      image.image_opts = true;
    else
      apply_image_option(option, image);
  }
  if (!arguments.operands.empty()) image.filename = arguments.operands[0];
  return image;
}

// False if any command failed.
bool run_commands(IoState& state, const Arguments& arguments) {
  EventLoop& loop = state.session().context().loop();
  bool all_well = true;
  const auto run = [&](const std::string& line) {
    if (!loop.run(run_line(state, line))) all_well = false;
  };
  if (arguments.has('c')) {
    for (const Arguments::Option& option : arguments.options) {
      if (option.key == 'c' && !state.quit) run(option.value);
    }
    return all_well;
  }
  Prompt prompt(loop, state.program().name);
  while (!state.quit) {
    const std::optional<std::string> line = prompt.next_line();
    if (!line) break;
    run(*line);
  }
  return all_well;
}

int run(const Program& program, const Arguments& arguments) {
  const ImageArguments image = image_arguments(arguments);
  if (image.force_share && !image.read_only) {
    throw Error(EINVAL, "-U (--force-share) needs -r (--read-only)");
  }
  ImageSession session(program);
  if (!add_objects(arguments, session.context().objects())) return 0;
  IoState state(session);
  state.image_opts = image.image_opts;
  state.misaligned = arguments.has('m');
  EventLoop& loop = session.context().loop();
  bool all_well = true;
  std::exception_ptr failure;
  try {
    if (!arguments.operands.empty()) {
      loop.run(state.open_image(image).context(fmt::format("can't open '{}'", image.filename)));
    }
    all_well = run_commands(state, arguments);
    loop.run(state.close_image());
  } catch (...) {
    failure = std::current_exception();
  }
  loop.run(session.close_all());
  if (failure) std::rethrow_exception(failure);
  return all_well ? 0 : 1;
}

int main_of(const Program& program, std::span<const std::string> words) {
  try {
    const Arguments arguments = parse_arguments(program.name, words, options);
    if (answer_help(program, arguments, [&] { return help_text(program); })) return 0;
    if (arguments.operands.size() > 1) throw UsageError();
    return report_failure(program, [&] { return run(program, arguments); });
  } catch (const UsageError&) {
    print(help_text(program));
    return 1;
  }
}

}  // namespace
}  // namespace vise::tools

int main(int argc, char** argv) {
  return vise::tools::run_program(argc, argv, vise::tools::main_of);
}
