// block-export-add and its relatives.
#include <fmt/format.h>

#include <cerrno>
#include <ranges>
#include <utility>

#include "export/export.h"
#include "monitor/commands.h"

namespace vise {

namespace {

Task<void> block_export_add(Services& services, qapi::BlockExportOptions options) {
  return services.exports().add(services, std::move(options));
}

// Clients may take their time: nobody waits for them but the event that tells the end.
task_detail::Detached remove_later(Services& services, std::string id) {
  try {
    co_await services.exports().remove(services, std::move(id));
  } catch (const Error& error) {
    services.graph().on_warning(fmt::format("Ending an export: {}", error.message()));
  }
}

Task<void> block_export_del(Services& services, qapi::BlockExportDelArguments arguments) {
  const ExportTable::Entry* const entry = services.exports().find(arguments.id);
  if (entry == nullptr) {
    throw Error(ENOENT, fmt::format("Export '{}' is not found", arguments.id));
  }
  if (entry->shutting_down) {
    throw Error(EBUSY, fmt::format("Export '{}' is already shutting down", arguments.id));
  }
  const bool hard = arguments.mode == qapi::BlockExportRemoveMode::hard;
  if (!hard && entry->object->has_clients()) {
    throw Error(EBUSY, fmt::format("export '{}' still in use", arguments.id))
        .with_hint("Use mode='hard' to force client disconnect");
  }
  remove_later(services, arguments.id);
  co_return;
}

Task<void> nbd_server_remove(Services& services, qapi::NbdServerRemoveArguments arguments) {
  qapi::BlockExportDelArguments removal;
  removal.id = arguments.name;
  removal.mode = arguments.mode;
  co_await block_export_del(services, std::move(removal));
}

Task<std::vector<qapi::BlockExportInfo>> query_block_exports(Services& services) {
  std::vector<qapi::BlockExportInfo> result;
  for (const auto& entry : std::views::reverse(services.exports().entries())) {
    qapi::BlockExportInfo info;
    info.id = entry->id;
    info.type = entry->type;
    info.node_name = entry->object->node().name();
    info.shutting_down = entry->shutting_down;
    result.push_back(std::move(info));
  }
  co_return result;
}

}  // namespace

void add_export_commands(CommandTable& commands) {
  namespace command = qapi::command;
  commands.add<command::block_export_add, block_export_add>();
  commands.add<command::block_export_del, block_export_del>();
  commands.add<command::nbd_server_remove, nbd_server_remove>();
  commands.add<command::query_block_exports, query_block_exports>();
}

}  // namespace vise
