// The registry of QMP commands. A handler is a coroutine that takes and gives the types that
// qapi/ declares for its command, so that the compiler checks the one against the other:
//
//     Task<void> block_resize(Services& services, qapi::BlockResizeArguments arguments);
//     commands.add<qapi::command::block_resize, block_resize>();
//
// Handlers of all monitors run one at a time (Services::turn).
#pragma once

#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "qapi/qapi-commands.h"
#include "util/qapi_values.h"
#include "util/value_reader.h"
#include "vise/error.h"
#include "vise/task.h"
#include "vise/value.h"

namespace vise {

class Services;

/// An error with a class of its own; all others are of class "GenericError".
class QmpError : public Error {
 public:
  QmpError(int code, std::string_view class_name, std::string_view text)
      : Error(code, text), class_name_(class_name) {}
  /// CommandNotFound, DeviceNotActive or DeviceNotFound.
  const std::string& class_name() const { return class_name_; }

 private:
  std::string class_name_;
};

class CommandTable {
 public:
  /// `arguments` is a dictionary; the result is one too, or a list.
  using Run = Task<Value> (*)(Services& services, Value arguments);

  /// A handler of the types that command `C` declares.
  template <class C, auto handler>
  void add() {
    add(C::name, &run_typed<C, handler>);
  }
  /// A handler that looks at the arguments itself. Names are unique (asserted).
  void add(std::string_view name, Run run);

  /// Null if there is none of that name.
  Run find(std::string_view name) const;
  /// Sorted.
  std::vector<std::string_view> names() const;

 private:
  template <class C, auto handler>
  static Task<Value> run_typed(Services& services, Value arguments);

  std::vector<std::pair<std::string_view, Run>> commands_;
};

/// Throws Error(EINVAL) unless `arguments` is empty.
void require_no_arguments(const Value& arguments);

template <class C, auto handler>
Task<Value> CommandTable::run_typed(Services& services, Value arguments) {
  using qapi::to_value;  // of builtin types, which are not found by their namespace
  using Arguments = typename C::Arguments;
  using Returns = typename C::Returns;
  if constexpr (std::is_void_v<Arguments>) {
    require_no_arguments(arguments);
    if constexpr (std::is_void_v<Returns>) {
      co_await handler(services);
      co_return Value(Value::Dict());
    } else {
      const Returns result = co_await handler(services);
      co_return to_value(result);
    }
  } else {
    Arguments typed;
    read(ValueReader(arguments, ValueInput::json), typed);
    if constexpr (std::is_void_v<Returns>) {
      co_await handler(services, std::move(typed));
      co_return Value(Value::Dict());
    } else {
      const Returns result = co_await handler(services, std::move(typed));
      co_return to_value(result);
    }
  }
}

}  // namespace vise
