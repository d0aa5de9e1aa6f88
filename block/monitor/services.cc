#include "monitor/services.h"

namespace vise {

Services::Services(Graph& graph, EventBus& events, ExportTable& exports)
    : graph_(graph), events_(events), exports_(exports) {
  graph_.on_event = [&events](std::string_view name, Value::Dict data) {
    events.emit(name, Value(std::move(data)));
  };
}

}  // namespace vise
