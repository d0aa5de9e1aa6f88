// The Context that main() makes.
#include "vise/context.h"

#include <cstdlib>
#include <string_view>

#include "util/io_engine.h"
#include "vise/driver_table.h"

namespace vise {

namespace {

bool io_uring_is_wanted() {
  const char* setting = std::getenv("VISE_IO_URING");
  return setting == nullptr || std::string_view(setting) != "0";
}

}  // namespace

Context::Context() : Context(Options{}) {}

Context::Context(Options options)
    : loop_(std::make_unique<EventLoop>()),
      workers_(std::make_unique<WorkerPool>(options.worker_threads)),
      io_threads_(make_io_threads(*loop_)),
      drivers_(std::make_unique<DriverTable>()) {
  if (options.io_uring && io_uring_is_wanted()) io_uring_ = make_io_uring(*loop_, *io_threads_);
}

Context::~Context() = default;

}  // namespace vise
