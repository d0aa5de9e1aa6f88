// Opens the input as a qcow2 image, checks and reads it, repairs it, and writes to it. Any of these
// may fail with an error; nothing may crash, hang or take memory without bound. An image that was
// repaired must be sound afterwards, as far as it could be checked.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "crash/disk.h"
#include "vise/buffer.h"
#include "vise/child.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/image_operations.h"

namespace vise {
namespace {

constexpr std::uint64_t piece = 64u << 10;  // bytes read or written at once

// What libFuzzer calls has no place for objects that live on.
struct World {
  World() { context.drivers().add(disk_type); }
  ~World() { context.loop().run(graph.close_all()); }

  Context context{Context::Options{.worker_threads = 1, .io_uring = false}};
  crash::DiskDriverType disk_type;
  Graph graph{context};
};

class Trial {
 public:
  Trial(World& world, std::span<const std::byte> input) : world_(world), input_(input) {
    // The header's bit for an external data file, whose name must not be followed.
    has_data_file_ = input.size() > 79 && (std::to_integer<unsigned>(input[79]) & 4) != 0;
  }

  void run() {
    with_image(Purpose::read, [](Child& root) { return look(root); });
    with_image(Purpose::write, [](Child& root) { return change(root); });
    with_image(Purpose::check, [](Child& root) { return check_alone(root); });
    with_image(Purpose::repair, [](Child& root) { return repair(root); });
  }

 private:
  enum class Purpose { read, write, check, repair };

  void with_image(Purpose purpose, Task<void> (*use)(Child& root)) {
    crash::Clock clock;
    crash::Image image;
    image.write(0, input_);
    crash::Disk disk(clock, std::move(image), {.room = 64u << 20});
    world_.disk_type.disk = &disk;
    try {
      world_.context.loop().run(open_and_use(purpose, use));
    } catch (const Error&) {
      // Most inputs are no images.
    }
  }

  Task<void> open_and_use(Purpose purpose, Task<void> (*use)(Child& root)) {
    OpenRequest request;
    request.options.set("driver", "qcow2");
    request.options.set("file.driver", "crash-disk");
    request.options.set("backing", Value());
    if (has_data_file_) request.options.set("data-file.driver", "crash-disk");
    request.defaults.read_only = purpose == Purpose::read || purpose == Purpose::check;
    request.defaults.discard_unmap = true;
    if (purpose == Purpose::check || purpose == Purpose::repair) {
      request.defaults.purpose = OpenPurpose::check;
    }
    std::unique_ptr<Child> root = co_await world_.graph.open_root(std::move(request));
    std::exception_ptr failure;
    try {
      co_await use(*root);
    } catch (...) {
      failure = std::current_exception();
    }
    co_await root->detach();
    if (failure) std::rethrow_exception(failure);
  }

  static Task<void> quietly(Task<void> task) {
    try {
      co_await std::move(task);
    } catch (const Error&) {
      // The next request may do.
    }
  }

  static std::vector<GuestRange> places(const Child& root) {
    const std::uint64_t size = root.size();
    std::vector<GuestRange> result;
    for (const std::uint64_t start : {std::uint64_t{0}, size / 2, size - std::min(size, piece)}) {
      const std::uint64_t length = std::min(piece, size - start);
      if (length > 0) result.push_back({GuestOffset(start), length});
    }
    return result;
  }

  static Task<void> read(Child& root, GuestRange range) {
    Buffer buffer(range.length);
    co_await root.read(range.start, IoVec(buffer.span()));
  }
  static Task<void> write(Child& root, GuestRange range, WriteFlags flags) {
    Buffer buffer(range.length);
    std::fill(buffer.span().begin(), buffer.span().end(), std::byte{7});
    co_await root.write(range.start, ConstIoVec(buffer.span()), flags);
  }

  static Task<void> look(Child& root) {
    GuestRange rest{GuestOffset(0), root.size()};
    for (int i = 0; i < 64 && !rest.empty(); ++i) {
      const BlockStatus status = co_await block_status(root.node(), rest);
      if (status.length == 0 || status.length > rest.length) std::abort();
      rest = {rest.start + status.length, rest.length - status.length};
    }
    for (const GuestRange& range : places(root)) {
      co_await quietly(read(root, range));
      const EncodedRun run = co_await root.read_encoded(range);
      if (run.extents.size() > range.length / 512) std::abort();
    }
  }

  static Task<void> change(Child& root) {
    for (const GuestRange& range : places(root)) {
      co_await quietly(write(root, range, {}));
      co_await quietly(write(root, range, {.compressed = true}));
      co_await quietly(read(root, range));
      co_await quietly(root.write_zeroes({range.start, range.length / 2}, {.may_unmap = true}));
      co_await quietly(root.discard(range));
    }
    co_await root.flush();
  }

  static Task<CheckResult> check(Child& root, Repair repair) {
    CheckRequest request;
    request.repair = repair;
    request.data = true;
    request.on_finding = [](const std::string&) {};
    auto& image = dynamic_cast<Checkable&>(root.node().driver());
    co_return co_await image.check(std::move(request));
  }
  static Task<void> check_alone(Child& root) {
    const CheckResult result = co_await check(root, Repair::none);
    if (result.corruptions_fixed != 0 || result.leaks_fixed != 0) std::abort();
  }
  static Task<void> repair(Child& root) {
    const CheckResult result = co_await check(root, Repair::all);
    if (result.check_errors == 0 && result.leaks != 0) std::abort();
  }

  World& world_;
  std::span<const std::byte> input_;
  bool has_data_file_ = false;
};

}  // namespace
}  // namespace vise

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static vise::World world;
  vise::Trial(world, std::as_bytes(std::span(data, size))).run();
  return 0;
}
