// vise-storage-daemon: block nodes, jobs and exports, driven over QMP.
#include <fmt/format.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tools/common/arguments.h"
#include "tools/common/output.h"
#include "tools/common/program.h"
#include "tools/daemon/daemon.h"
#include "tools/daemon/service.h"
#include "util/fd_watch.h"
#include "util/file_descriptor.h"
#include "vise/error.h"
#include "vise/objects.h"
#include "vise/sync.h"

namespace vise::tools {
namespace {

enum : int {
  blockdev = 1000,
  chardev,
  daemonize,
  export_node,
  monitor,
  nbd_server,
  object,
  pidfile
};

constexpr OptionSpec options[] = {
    {'h', "help", nullptr, "this help"},
    {'V', "version", nullptr, "the version"},
    {blockdev, "blockdev", "OPTIONS", "open a node: DRIVER,node-name=NAME,… or JSON"},
    {chardev, "chardev", "OPTIONS", "socket,id=ID,path=PATH,server=on,wait=off or stdio,id=ID"},
    {monitor, "monitor", "OPTIONS", "speak QMP: CHARDEV[,pretty=on]"},
    {object, "object", "OBJECT", "an object that nodes refer to: TYPE,id=ID,…, or help"},
    {nbd_server, "nbd-server", "OPTIONS", "serve NBD: addr.type=unix,addr.path=PATH,…"},
    {export_node, "export", "OPTIONS", "offer a node: TYPE,id=ID,node-name=NAME,…"},
    {pidfile, "pidfile", "PATH", "write the process ID to a file once all is ready"},
    {daemonize, "daemonize", nullptr, "go to the background once all is ready"},
    {'T', "trace", "PATTERN", "accepted and ignored"},
};

std::string help_text(const Program& program) {
  return fmt::format(
      "Usage: {} [OPTION]...\nKeeps disk images open and works on them as QMP clients ask for.\n\n"
      "{}\nOptions take effect in the order given.\n",
      program.name, describe_options(options));
}

// Becomes readable with the first signal that asks for the end.
FileDescriptor end_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  const int fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
  if (fd < 0) throw Error::system_error(errno, "signalfd");
  return FileDescriptor(fd);
}

Task<void> end_on_signal(FdWatch& signals, Services& services) {
  co_await signals.wait();
  if (!signals.cancelled()) services.quit();
}

// One option; false if it only asked for help.
Task<bool> apply(Daemon& daemon, const Arguments::Option& option) {
  switch (option.key) {
    case blockdev:
      co_await daemon.add_blockdev(option.value);
      break;
    case chardev:
      co_await daemon.add_chardev(option.value);
      break;
    case monitor:
      daemon.add_monitor(option.value);
      break;
    case export_node:
      co_await daemon.add_export(option.value);
      break;
    case nbd_server:
      co_await daemon.add_nbd_server(option.value);
      break;
    case object:
      if (option.value == "help" || option.value == "?") {
        print("List of user creatable objects:\n");
        for (const std::string_view type : ObjectTable::types()) {
          print(fmt::format("  {}\n", type));
        }
        co_return false;
      }
      daemon.add_object(option.value);
      break;
    default:
      break;
  }
  co_return true;
}

std::string spelled(const Arguments::Option& option) {
  for (const OptionSpec& spec : options) {
    if (spec.key == option.key) return fmt::format("--{} {}", spec.long_name, option.value);
  }
  return option.value;
}

Task<bool> apply_all(Daemon& daemon, const Arguments& arguments) {
  for (const Arguments::Option& option : arguments.options) {
    const bool goes_on = co_await apply(daemon, option).context(spelled(option));
    if (!goes_on) co_return false;
    if (daemon.services().quitting().is_set()) co_return true;
  }
  co_return true;
}

Task<void> serve(Daemon& daemon, const Arguments& arguments, PidFile& pid_file,
                 Daemonizer& daemonizer) {
  bool goes_on = false;
  {
    // What clients ask of a monitor meanwhile finds what all options have made.
    AsyncMutex::Guard guard = co_await daemon.services().turn().lock();
    goes_on = co_await apply_all(daemon, arguments);
  }
  if (!goes_on) co_return;
  if (arguments.has(daemonize) && daemon.uses_stdio()) {
    throw Error(EINVAL, "cannot use stdio with --daemonize");
  }
  if (const std::string* path = arguments.last(pidfile)) pid_file.write(*path);
  daemonizer.become_ready();
  notify_service_manager("READY=1");
  co_await daemon.wait_for_end();
  notify_service_manager("STOPPING=1");
}

Task<void> run_daemon(Daemon& daemon, const Arguments& arguments, Daemonizer& daemonizer,
                      int signal_fd) {
  FdWatch signals(signal_fd, FdWatch::Until::readable);
  TaskScope scope;
  scope.spawn(end_on_signal(signals, daemon.services()));
  PidFile pid_file;
  std::exception_ptr failure;
  try {
    co_await serve(daemon, arguments, pid_file, daemonizer);
  } catch (...) {
    failure = std::current_exception();
  }
  try {
    co_await daemon.shut_down();
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  signals.cancel();
  co_await scope.join();
  if (failure) std::rethrow_exception(failure);
}

int run(const Arguments& arguments) {
  // Before there are threads, which inherit what is blocked and are not copied by fork.
  const FileDescriptor signals = end_signals();
  Daemonizer daemonizer;
  if (arguments.has(daemonize)) daemonizer.fork_away();
  Daemon daemon;
  daemon.context().loop().run(run_daemon(daemon, arguments, daemonizer, signals.get()));
  return 0;
}

int main_of(const Program& program, std::span<const std::string> words) {
  try {
    const Arguments arguments = parse_arguments(program.name, words, options);
    if (answer_help(program, arguments, [&] { return help_text(program); })) return 0;
    return report_failure(program, [&] {
      if (!arguments.operands.empty()) {
        throw Error(EINVAL, fmt::format("Unexpected argument: {}", arguments.operands[0]));
      }
      return run(arguments);
    });
  } catch (const UsageError&) {
    return 1;
  }
}

}  // namespace
}  // namespace vise::tools

int main(int argc, char** argv) {
  return vise::tools::run_program(argc, argv, vise::tools::main_of);
}
