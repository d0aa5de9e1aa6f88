// What blkdebug does when: rules that events arm, a state they may depend on, breakpoints. No I/O
// here. The words are those of the schema (BlkdebugInjectErrorOptions).
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vise/event.h"
#include "vise/types.h"

namespace vise {

/// The kinds of request that faults tell apart, as single bits.
enum class BlkdebugIo : std::uint32_t {
  read = 1,
  write = 2,
  write_zeroes = 4,
  discard = 8,
  flush = 16,
  block_status = 32,
};

class BlkdebugRules {
 public:
  struct InjectError {
    Event event = Event::none;
    int state = 0;  // 0: in any
    FlagSet<BlkdebugIo> requests;
    int error_code = 0;                   // errno; 0: the request goes well after all
    std::optional<std::uint64_t> sector;  // only requests that touch these 512 bytes
    bool once = false;
    bool immediately = false;  // without letting other requests run first
  };
  struct SetState {
    Event event = Event::none;
    int state = 0;  // 0: in any
    int new_state = 0;
  };
  struct Fault {
    int error_code;
    bool immediately;
  };

  void add(InjectError rule) { errors_.push_back(rule); }
  void add(SetState rule) { states_.push_back(rule); }
  void add_breakpoint(Event event, std::string tag);
  /// How many there were.
  std::size_t remove_breakpoints(std::string_view tag);

  /// Arms the rules of `event`, instead of those armed before if it has any, then changes the
  /// state. Gives the tag of the breakpoint that was hit, which is gone then.
  std::optional<std::string> reached(Event event);

  /// What is to become of a request; `range` is empty for those that have none.
  std::optional<Fault> fault_for(BlkdebugIo request, GuestRange range);

 private:
  struct Breakpoint {
    Event event;
    std::string tag;
  };

  int state_ = 1;
  std::list<InjectError> errors_;
  std::vector<std::list<InjectError>::iterator> armed_;
  std::vector<SetState> states_;
  std::vector<Breakpoint> breakpoints_;
};

}  // namespace vise
