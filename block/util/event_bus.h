// QMP events on their way from whoever causes them to every monitor.
#pragma once

#include <functional>
#include <list>
#include <string_view>
#include <type_traits>
#include <utility>

#include "qapi/qapi-commands.h"
#include "vise/value.h"

namespace vise {

class EventBus {
 public:
  /// Must neither throw nor wait. `data` is null for events without data.
  using Listener = std::function<void(std::string_view name, const Value& data)>;
  using Handle = std::list<Listener>::iterator;

  Handle listen(Listener listener) {
    return listeners_.insert(listeners_.end(), std::move(listener));
  }
  void forget(Handle handle) { listeners_.erase(handle); }

  void emit(std::string_view name, const Value& data) {
    for (const Listener& listener : listeners_) listener(name, data);
  }
  /// bus.emit<qapi::event::JOB_STATUS_CHANGE>({.id = …, .status = …})
  template <class E>
  void emit(const typename E::Arguments& data) {
    emit(E::name, Value(to_value(data)));
  }

 private:
  std::list<Listener> listeners_;
};

}  // namespace vise
