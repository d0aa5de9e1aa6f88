#include "monitor/services.h"

namespace vise {

Services::Services(Graph& graph, EventBus& events, ExportTable& exports)
    : graph_(graph), events_(events), exports_(exports) {
  graph_.on_event = [&events](std::string_view name, Value::Dict data) {
    events.emit(name, Value(std::move(data)));
  };
  graph_.on_image_corrupted = [&events](const ImageCorruption& corruption) {
    qapi::BlockImageCorruptedArguments data;
    data.node_name = corruption.node.name();
    data.msg = corruption.message;
    if (corruption.range) {
      data.offset = static_cast<std::int64_t>(corruption.range->start.bytes());
      data.size = static_cast<std::int64_t>(corruption.range->length);
    }
    data.fatal = corruption.fatal;
    events.emit<qapi::event::BLOCK_IMAGE_CORRUPTED>(data);
  };
}

}  // namespace vise
