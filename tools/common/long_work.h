// What long operations share: progress, SIGUSR1 that asks for it, and an end in order when SIGINT,
// SIGTERM or SIGHUP come.
#pragma once

#include <csignal>
#include <exception>
#include <string>

#include "copy/copy.h"
#include "tools/common/progress.h"
#include "tools/common/shared_options.h"

namespace vise::tools {

/// The work was stopped by a signal. Everything has been closed by the time main() sees it, which
/// ends the program by that signal.
class Interrupted : public std::exception {
 public:
  explicit Interrupted(int signal) : signal_(signal) {}
  int signal() const { return signal_; }
  const char* what() const noexcept override { return "interrupted"; }

 private:
  int signal_;
};

/// Ends the program the way `signal` does by default. Does not return for signals that end one.
void die_of(int signal);

/// One such operation. Must be made before any thread is started that may take the signals.
class LongWork {
 public:
  enum class OnInterrupt {
    die,     // at once, as any program; for work that may stop anywhere
    finish,  // after the work is done; at once at the second signal
    remove,  // as `die`, after removing what remove_when_interrupted() names
    stop     // as `remove` while there is a file to remove; else the control is cancelled, and
             // images are closed before the program ends
  };
  LongWork(Progress::Options progress, OnInterrupt on_interrupt);
  ~LongWork();
  LongWork(const LongWork&) = delete;

  Progress& progress() { return progress_; }
  /// The progress of a copy.
  void show(const CopyProgress& state);
  /// Cancelled by the first signal; the second one ends the program at once.
  CopyControl& control() { return control_; }
  /// Throws Error(ECANCELED) once a signal has come.
  void checkpoint() const;

  /// From now on a signal ends the program at once, and the file goes first: it is worth nothing
  /// until run() completes. Only regular files are removed.
  void remove_when_interrupted(std::string path) { unfinished_ = std::move(path); }

  /// Does `body` while signals are listened to. Throws Interrupted if one has stopped it.
  Task<int> run(Task<int> body);

 private:
  Task<void> listen();
  void receive(int signal);

  Progress progress_;
  CopyControl control_;
  std::string unfinished_;  // path; empty: none
  OnInterrupt on_interrupt_;
  int interrupted_by_ = 0;  // signal
  sigset_t signals_;        // that are listened to
  sigset_t old_mask_;
  int signal_fd_ = -1;
  int end_fd_ = -1;    // readable at the end of the work
  int ready_fd_ = -1;  // one of the two is readable
};

/// As run_session(), for long work: the body gets it as its third argument.
template <class Request>
int run_long_session(const Program& program, const Arguments& arguments,
                     LongWork::OnInterrupt on_interrupt,
                     Task<int> (*body)(ImageSession&, const Request&, LongWork&),
                     const Request& request) {
  LongWork work(progress_options(arguments), on_interrupt);
  ImageSession session(program);
  if (!add_objects(arguments, session.context().objects())) return 0;
  return session.run(work.run(body(session, request, work)));
}

}  // namespace vise::tools
