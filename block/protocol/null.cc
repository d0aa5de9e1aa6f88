// null-co and null-aio: a disk that forgets. For measuring what is above it, and the smallest
// complete driver: read it first. docs/drivers.md explains it line by line.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>

#include "protocol/protocols.h"
#include "util/driver_options.h"
#include "vise/context.h"
#include "vise/graph.h"

namespace vise {

namespace {

constexpr std::uint64_t default_size = 1ull << 30;

struct NullOptions {
  std::uint64_t size = default_size;    // bytes
  std::chrono::nanoseconds latency{0};  // of every request
  bool read_zeroes = false;             // else reads leave the buffer as it is
};

class NullDriver final : public Driver {
 public:
  NullDriver(Node& node, NullOptions options) : node_(node), options_(options) {}

  std::uint64_t size() const override { return options_.size; }

  Limits limits() const override {
    return {.native_fua = true, .can_zero = true, .can_discard = true};
  }

  Task<Extent> map(GuestRange range, MapMode) override {
    if (options_.read_zeroes) co_return Extent{.kind = Extent::Kind::zero, .length = range.length};
    co_return Extent{.kind = Extent::Kind::data,
                     .length = range.length,
                     .host = HostOffset(range.start.bytes()),
                     .node = &node_};
  }

  Task<void> read(GuestOffset, IoVec data) override {
    co_await delay();
    if (options_.read_zeroes) data.fill(std::byte{0});
  }

  Task<void> write(GuestOffset, ConstIoVec, WriteFlags) override { return delay(); }
  Task<void> write_zeroes(GuestRange, ZeroFlags) override { return delay(); }
  Task<void> discard(GuestRange) override { return delay(); }
  Task<void> flush() override { return delay(); }
  Task<void> reopen(bool) override { co_return; }
  Task<DriverInfo> info() override { co_return DriverInfo{.allocated_size = 0}; }
  Task<void> close() override { co_return; }

 private:
  Task<void> delay() {
    if (options_.latency.count() > 0) co_await EventLoop::current().sleep(options_.latency);
  }

  Node& node_;
  const NullOptions options_;
};

Task<std::unique_ptr<Driver>> open(OpenContext& context) {
  const auto given = read_options<qapi::BlockdevOptionsNull>(context);
  const auto latency = std::min<std::uint64_t>(given.latency_ns.value_or(0), INT64_MAX);
  const NullOptions options{.size = given.size.value_or(default_size),
                            .latency = std::chrono::nanoseconds(latency),
                            .read_zeroes = given.read_zeroes.value_or(false)};
  co_return std::make_unique<NullDriver>(context.node(), options);
}

}  // namespace

// QEMU has two drivers, one per way of scheduling; a coroutine has but one.
const DriverType null_co_driver = {.name = "null-co", .kind = DriverKind::protocol, .open = open};
const DriverType null_aio_driver = {.name = "null-aio", .kind = DriverKind::protocol, .open = open};

}  // namespace vise
