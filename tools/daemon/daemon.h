// What the command line of vise-storage-daemon builds up: nodes, objects, monitors, exports.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "export/export.h"
#include "monitor/chardev.h"
#include "monitor/monitor.h"
#include "monitor/services.h"
#include "vise/context.h"
#include "vise/graph.h"

namespace vise::tools {

class Daemon {
 public:
  Daemon();
  Daemon(const Daemon&) = delete;
  ~Daemon();  // after shut_down()

  Context& context() { return context_; }
  Services& services() { return services_; }

  // One for each option of that name, taking its value. They throw Error.
  Task<void> add_blockdev(std::string text);
  Task<void> add_chardev(std::string text);
  void add_monitor(const std::string& text);
  void add_object(const std::string& text);
  Task<void> add_export(std::string text);
  Task<void> add_nbd_server(std::string text);

  bool uses_stdio() const;
  /// Completes when `quit` or a signal asks for the end.
  Task<void> wait_for_end();
  /// Cancels jobs, ends exports, closes all nodes, lets the monitors say what they have to say, and
  /// ends them. Throws what went wrong first, after all is done.
  Task<void> shut_down();

 private:
  struct NamedChardev {
    std::string id;
    std::unique_ptr<Chardev> chardev;
    bool used = false;
  };

  Context context_;
  Graph graph_;
  EventBus events_;
  ExportTable exports_;
  Services services_;
  std::vector<NamedChardev> chardevs_;
  std::vector<std::unique_ptr<Monitor>> monitors_;
  TaskScope serving_;
};

}  // namespace vise::tools
