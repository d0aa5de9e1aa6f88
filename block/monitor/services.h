// What commands, jobs and exports work on. Made once, by a program that has monitors.
#pragma once

#include <memory>

#include "job/job_table.h"
#include "monitor/command.h"
#include "util/event_bus.h"
#include "vise/graph.h"
#include "vise/sync.h"

namespace vise {

class ExportTable;
namespace nbd {
class Server;
}

class Services {
 public:
  Services(Graph& graph, EventBus& events, ExportTable& exports);
  Services(const Services&) = delete;

  Graph& graph() { return graph_; }
  Context& context() { return graph_.context(); }
  EventBus& events() { return events_; }
  JobTable& jobs() { return jobs_; }
  ExportTable& exports() { return exports_; }
  CommandTable& commands() { return commands_; }
  /// Null while it does not run (export/nbd_service.h).
  std::shared_ptr<nbd::Server>& nbd_server() { return nbd_server_; }

  /// Held while a command runs, and by jobs and exports while they change the graph: whoever has it
  /// finds nodes as they were when it looked. Taken before anything else; never while waiting for a
  /// job, an export or a client.
  AsyncMutex& turn() { return turn_; }

  /// Asks the program to end, as `quit` and signals do.
  void quit() { quit_.set(); }
  AsyncEvent& quitting() { return quit_; }

 private:
  Graph& graph_;
  EventBus& events_;
  ExportTable& exports_;
  CommandTable commands_;
  std::shared_ptr<nbd::Server> nbd_server_;
  AsyncMutex turn_;
  JobTable jobs_{events_, turn_};
  AsyncEvent quit_;
};

/// The node of that name. Throws Error(ENOENT) with the words clients know.
Node& get_node(Services& services, std::string_view node_name);

}  // namespace vise
