// The Context that main() makes.
#include "vise/context.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "util/io_engine.h"
#include "vise/driver_table.h"
#include "vise/objects.h"

namespace vise {

namespace {

bool io_uring_is_wanted() {
  const char* setting = std::getenv("VISE_IO_URING");
  return setting == nullptr || std::string_view(setting) != "0";
}

/// VISE_WORKERS=N, for tests and for those who share a machine; 0, unset or no number: `otherwise`.
unsigned wanted_workers(unsigned otherwise) {
  const char* setting = std::getenv("VISE_WORKERS");
  if (setting == nullptr) return otherwise;
  const unsigned long count = std::strtoul(setting, nullptr, 10);
  return count == 0 ? otherwise : static_cast<unsigned>(std::min(count, 64UL));
}

}  // namespace

Context::Context() : Context(Options{}) {}

Context::Context(Options options)
    : loop_(std::make_unique<EventLoop>()),
      workers_(std::make_unique<WorkerPool>(wanted_workers(options.worker_threads))),
      io_threads_(make_io_threads(*loop_)),
      drivers_(std::make_unique<DriverTable>()),
      objects_(std::make_unique<ObjectTable>()) {
  if (options.io_uring && io_uring_is_wanted()) io_uring_ = make_io_uring(*loop_, *io_threads_);
}

Context::~Context() = default;

}  // namespace vise
