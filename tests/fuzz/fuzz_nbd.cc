// Sends the input to the NBD server as a client does that hangs up behind it, and reads whatever
// comes back: handshake and requests, on a writable export "d" of a qcow2 image and on one, "r",
// that is read-only.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

#include "crash/disk.h"
#include "export/nbd/server.h"
#include "export/nbd/stream.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise {
namespace {

constexpr std::size_t largest_input = 64u << 10;  // bytes; fits into the socket

struct World {
  World() { context.drivers().add(disk_type); }
  Context context{Context::Options{.worker_threads = 1, .io_uring = false}};
  crash::DiskDriverType disk_type;
};

class Trial {
 public:
  explicit Trial(World& world) : context_(world.context), graph_(context_) {
    world.disk_type.disk = &disk_;
    context_.loop().run(start());
  }
  ~Trial() {
    context_.loop().run(server_.close());
    context_.loop().run(graph_.close_all());
  }

  void run(std::span<const std::uint8_t> input) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
      std::abort();
    const ssize_t sent = ::send(pair[0], input.data(), input.size(), MSG_NOSIGNAL);
    if (sent != static_cast<ssize_t>(input.size())) std::abort();
    ::shutdown(pair[0], SHUT_WR);
    nbd::Stream client{FileDescriptor(pair[0])};
    server_.serve(FileDescriptor(pair[1]));
    context_.loop().run(read_all(client));
  }

 private:
  Task<void> start() {
    OpenRequest disk;
    disk.options.set("driver", "crash-disk");
    std::shared_ptr<Node> file = co_await graph_.open(std::move(disk));
    CreateRequest create{.graph = graph_, .filename = "d", .size = 1u << 20};
    create.file = std::move(file);
    co_await context_.drivers().get("qcow2").create(create);  // nobody else holds it: it is closed
    create.file.reset();
    OpenRequest image;
    image.options.set("driver", "qcow2");
    image.options.set("file.driver", "crash-disk");
    std::shared_ptr<Node> node = co_await graph_.open(std::move(image));
    nbd::ExportOptions writable;
    writable.name = "d";
    writable.writable = true;
    writable.allocation_depth = true;
    co_await server_.add(std::move(writable), node);
    nbd::ExportOptions read_only;
    read_only.name = "r";
    co_await server_.add(std::move(read_only), node);
  }

  static Task<void> read_all(nbd::Stream& client) {
    std::array<std::byte, 4096> buffer;
    for (;;) {
      std::size_t count = 0;
      try {
        count = co_await client.receive(buffer);
      } catch (const Error&) {
        count = 0;
      }
      if (count == 0) co_return;
    }
  }

  Context& context_;
  crash::Clock clock_;
  crash::Disk disk_{clock_, crash::Image(), {.room = 64u << 20}};
  Graph graph_;
  nbd::Server server_{graph_, nbd::ServerOptions()};
};

}  // namespace
}  // namespace vise

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static vise::World world;
  vise::Trial(world).run({data, std::min(size, vise::largest_input)});
  return 0;
}
