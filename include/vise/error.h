// What every failure in Vise looks like: an errno for callers, a message chain for people.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace vise {

/// A failed operation. Callers branch on code(); people read what().
///
/// what() is the chain of contexts, outermost first, joined by ": ", without a full stop, e.g.
/// "Could not open 'a.qcow2': L1 table: Input/output error".
class Error : public std::exception {
 public:
  /// `code` is a positive errno value. The message is `text` alone: use system_error() for
  /// failures of system calls, whose text is the errno's.
  Error(int code, std::string_view text) : code_(code), message_(text) {}

  /// The failure of a system call: "`context`: strerror(code)", or only the latter without context.
  static Error system_error(int code, std::string_view context = {});

  /// A positive errno value; survives every with_context().
  int code() const { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }
  const std::string& message() const { return message_; }

  /// A second line for people, printed below the message without prefix; empty if none.
  const std::string& hint() const { return hint_; }

  /// Puts "`context`: " in front of the message.
  void add_context(std::string_view context);
  Error& with_hint(std::string_view hint) {
    hint_ = hint;
    return *this;
  }

 private:
  int code_;
  std::string message_;
  std::string hint_;
};

}  // namespace vise
