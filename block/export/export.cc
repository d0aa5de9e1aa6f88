#include "export/export.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

#include "job/job_filter.h"
#include "util/ids.h"
#include "util/iothread.h"
#include "vise/context.h"
#include "vise/error.h"

namespace vise {

ExportTable::~ExportTable() { assert(entries_.empty() && "await stop_all() before"); }

ExportTable::Entry* ExportTable::find(std::string_view id) const {
  const auto found = std::ranges::find(entries_, id, [](const auto& entry) { return entry->id; });
  return found == entries_.end() ? nullptr : found->get();
}

Task<void> ExportTable::add(Services& services, qapi::BlockExportOptions options) {
  require_id(options.id, "an export");
  if (find(options.id) != nullptr) {
    throw Error(EEXIST, fmt::format("Block export id '{}' is already in use", options.id));
  }
  const auto type = std::ranges::find(types_, options.type, &ExportType::type);
  if (type == types_.end()) {
    throw Error(ENOTSUP, fmt::format("Exports of type '{}' are not part of this program",
                                     to_string(options.type)));
  }
  // Below a job's filter, what clients write would go unseen.
  const Node& node = above_job_filters(get_node(services, options.node_name));
  auto* const nbd = std::get_if<qapi::BlockExportOptionsNbd>(&options.branch);
  if (nbd != nullptr && !nbd->name) nbd->name = options.node_name;
  options.node_name = node.name();
  if (options.writable.value_or(false) && node.read_only()) {
    throw Error(EROFS, fmt::format("Cannot export read-only node '{}' as writable", node.name()));
  }
  std::shared_ptr<Iothread> iothread;
  if (options.iothread) {
    iothread =
        std::dynamic_pointer_cast<Iothread>(services.context().objects().find(*options.iothread));
    if (iothread == nullptr) {
      throw Error(ENOENT, fmt::format("iothread \"{}\" not found", *options.iothread));
    }
  }
  auto entry = std::make_unique<Entry>();
  entry->id = options.id;
  entry->iothread = std::move(iothread);
  entry->type = options.type;
  std::unique_ptr<Export> made = co_await (*type)->make(services, std::move(options));
  entry->object = std::move(made);
  entries_.push_back(std::move(entry));
}

Task<void> ExportTable::remove(Services& services, std::string id) {
  Entry* const entry = find(id);
  if (entry == nullptr || entry->shutting_down) co_return;
  entry->shutting_down = true;
  std::exception_ptr failure;
  try {
    co_await entry->object->stop();
  } catch (...) {
    failure = std::current_exception();
  }
  std::erase_if(entries_, [&](const auto& known) { return known.get() == entry; });
  services.events().emit<qapi::event::BLOCK_EXPORT_DELETED>({.id = id});
  if (failure) std::rethrow_exception(failure);
}

Task<void> ExportTable::stop_all(Services& services) {
  for (const qapi::BlockExportType type : {qapi::BlockExportType::nbd}) {
    co_await stop_all(services, type);
  }
}

Task<void> ExportTable::stop_all(Services& services, qapi::BlockExportType type) {
  std::vector<std::string> ids;
  for (const auto& entry : entries_) {
    if (entry->type == type) ids.push_back(entry->id);
  }
  for (const std::string& id : ids) co_await remove(services, id);
}

}  // namespace vise
