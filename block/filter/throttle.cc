// throttle: requests wait until their group's limits let them pass.
#include <fmt/format.h>

#include <cerrno>
#include <memory>
#include <utility>

#include "filter/filters.h"
#include "filter/throttle_group.h"
#include "util/driver_options.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/filter.h"
#include "vise/graph.h"

namespace vise {

namespace {

class ThrottleDriver final : public Filter {
 public:
  ThrottleDriver(std::unique_ptr<Child> child, std::shared_ptr<ThrottleGroup> group)
      : Filter(std::move(child)), group_(std::move(group)) {}

  Task<void> read(GuestOffset offset, IoVec data) override {
    co_await group_->admit(Direction::read, data.size());
    co_await Filter::read(offset, data);
  }
  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override {
    co_await group_->admit(Direction::write, data.size());
    co_await Filter::write(offset, data, flags);
  }
  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override {
    co_await group_->admit(Direction::write, range.length);
    co_await Filter::write_zeroes(range, flags);
  }
  Task<void> discard(GuestRange range) override {
    co_await group_->admit(Direction::write, range.length);
    co_await Filter::discard(range);
  }
  // Stored clusters count by the bytes that travel.
  Task<EncodedRun> read_encoded(GuestRange range) override {
    EncodedRun run = co_await Filter::read_encoded(range);
    std::uint64_t bytes = 0;
    for (const EncodedExtent& extent : run.extents) bytes += extent.data.size();
    if (bytes > 0) co_await group_->admit(Direction::read, bytes);
    co_return run;
  }
  Task<bool> write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                           WriteFlags flags) override {
    std::uint64_t bytes = 0;
    for (const EncodedExtent& extent : extents) bytes += extent.data.size();
    co_await group_->admit(Direction::write, bytes);
    co_return co_await Filter::write_encoded(offset, extents, flags);
  }

  std::span<const std::string_view> changeable_options() const override {
    static constexpr std::string_view names[] = {"throttle-group"};
    return names;
  }
  Task<std::function<void()>> prepare_reopen(OpenContext& context) override;

 private:
  using Direction = ThrottleGroup::Direction;
  std::shared_ptr<ThrottleGroup> group_;
};

std::shared_ptr<ThrottleGroup> read_group(OpenContext& context) {
  const auto options = read_options<qapi::BlockdevOptionsThrottle>(context);
  auto group = std::dynamic_pointer_cast<ThrottleGroup>(
      context.context().objects().find(options.throttle_group));
  if (group == nullptr) {
    throw Error(EINVAL, fmt::format("Parameter '{}throttle-group': there is no throttle group '{}'",
                                    context.option_path(), options.throttle_group));
  }
  return group;
}

Task<std::function<void()>> ThrottleDriver::prepare_reopen(OpenContext& context) {
  std::shared_ptr<ThrottleGroup> group = read_group(context);
  co_return [this, group] { group_ = group; };
}

Task<std::unique_ptr<Driver>> open(OpenContext& context) {
  std::shared_ptr<ThrottleGroup> group = read_group(context);
  std::unique_ptr<Child> child =
      co_await context.open_child(std::string("file"), EdgeRole::filtered);
  co_return std::make_unique<ThrottleDriver>(std::move(child), std::move(group));
}

}  // namespace

const DriverType throttle_driver = {.name = "throttle", .kind = DriverKind::filter, .open = open};

}  // namespace vise
