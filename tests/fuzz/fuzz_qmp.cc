// Feeds the input to a QMP session, in chunks, with nodes of all sorts to work on. What would reach
// files, sockets or devices of this machine is refused before it is tried.
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "crash/disk.h"
#include "export/export.h"
#include "monitor/commands.h"
#include "monitor/session.h"
#include "util/json.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise {
namespace {

constexpr std::array<std::string_view, 9> harmless_drivers = {
    "null-co",  "null-aio", "raw",       "qcow2",       "compress",
    "throttle", "blkdebug", "blkverify", "copy-on-read"};
constexpr std::array<std::string_view, 6> refused_commands = {
    "object-add",       "blockdev-create",  "blockdev-snapshot-sync",
    "nbd-server-start", "block-export-add", "nbd-server-add"};

template <class Words>
bool has(const Words& words, std::string_view word) {
  return std::ranges::find(words, word) != words.end();
}

// Whether `value` names a driver, a file or an action that is not harmless, anywhere in it.
bool reaches_out(const Value& value) {
  if (value.is_list()) return std::ranges::any_of(value.as_list(), reaches_out);
  if (!value.is_dict()) return false;
  for (const auto& [name, member] : value.as_dict()) {
    const bool is_text = member.is_string();
    if (name == "driver" && (!is_text || !has(harmless_drivers, member.as_string()))) return true;
    if (name == "type" && is_text && member.as_string().starts_with("blockdev-snapshot-sync")) {
      return true;
    }
    if (name == "filename" || name == "config" || name == "x-image" || name == "x-raw") return true;
    if (reaches_out(member)) return true;
  }
  return false;
}

CommandTable& all_commands() {
  static CommandTable table = [] {
    CommandTable made;
    add_all_commands(made);
    return made;
  }();
  return table;
}

Task<Value> refuse(Services&, Value) { throw Error(EPERM, "refused"); }

template <const auto& name>
Task<Value> guarded(Services& services, Value arguments) {
  if (reaches_out(arguments)) throw Error(EPERM, "refused");
  co_return co_await all_commands().find(name)(services, std::move(arguments));
}
constexpr std::string_view blockdev_add = "blockdev-add";
constexpr std::string_view transaction = "transaction";

struct World {
  World() { context.drivers().add(disk_type); }
  Context context{Context::Options{.worker_threads = 1, .io_uring = false}};
  crash::DiskDriverType disk_type;
};

class Trial {
 public:
  explicit Trial(World& world) : context_(world.context), graph_(context_) {
    for (const std::string_view name : all_commands().names()) {
      CommandTable::Run run = all_commands().find(name);
      if (has(refused_commands, name)) run = refuse;
      if (name == blockdev_add) run = guarded<blockdev_add>;
      if (name == transaction) run = guarded<transaction>;
      services_.commands().add(name, run);
    }
    world.disk_type.disk = &disk_;
    context_.loop().run(add_nodes());
  }
  ~Trial() {
    context_.loop().run(services_.jobs().stop_all());
    context_.loop().run(exports_.stop_all(services_));
    context_.loop().run(graph_.close_all());
  }

  void run(std::string_view input) {
    QmpSession session(services_, QmpSession::Layout::one_line, [](const std::string& text) {
      json::parse(text);  // what we say is JSON, whatever we are told
    });
    session.feed("{\"execute\":\"qmp_capabilities\"}");
    for (std::size_t chunk = 1; !input.empty(); chunk = chunk % 61 + 7) {
      session.feed(input.substr(0, chunk));
      input.remove_prefix(std::min(chunk, input.size()));
      while (session.has_requests()) context_.loop().run(session.run());
      context_.loop().run(context_.loop().yield());
    }
  }

 private:
  Task<void> add_nodes() {
    OpenRequest disk;
    disk.options.set("driver", "crash-disk");
    disk.options.set("node-name", "d");
    std::shared_ptr<Node> node = co_await graph_.open(std::move(disk));
    graph_.adopt(node);
    CreateRequest create{.graph = graph_, .filename = "d", .size = 64u << 10};
    create.file = std::move(node);
    create.options.set("cluster_size", "512");
    co_await context_.drivers().get("qcow2").create(create);
    OpenRequest image;
    image.options.set("driver", "qcow2");
    image.options.set("node-name", "q");
    image.options.set("file", "d");
    std::shared_ptr<Node> qcow2 = co_await graph_.open(std::move(image));
    graph_.adopt(std::move(qcow2));
    OpenRequest null;
    null.options.set("driver", "null-co");
    null.options.set("node-name", "n");
    null.options.set("size", 64u << 10);
    std::shared_ptr<Node> zeros = co_await graph_.open(std::move(null));
    graph_.adopt(std::move(zeros));
  }

  Context& context_;
  crash::Clock clock_;
  crash::Disk disk_{clock_, crash::Image(), {.room = 16u << 20}};
  Graph graph_;
  EventBus events_;
  ExportTable exports_{{}};
  Services services_{graph_, events_, exports_};
};

}  // namespace
}  // namespace vise

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static vise::World world;
  vise::Trial(world).run({reinterpret_cast<const char*>(data), size});
  return 0;
}
