// preallocate: between a format and its file. A write past the end makes the file longer by more
// than it needs, so that the next ones find allocated space; what is left over is cut off when the
// file is closed or becomes read-only.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "filter/filters.h"
#include "util/driver_options.h"
#include "vise/error.h"
#include "vise/filter.h"
#include "vise/graph.h"
#include "vise/sync.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

constexpr std::uint64_t default_align = 1u << 20;
constexpr std::uint64_t default_size = 128u << 20;

class PreallocateDriver final : public Filter {
 public:
  PreallocateDriver(Node& node, std::unique_ptr<Child> child, std::uint64_t align,
                    std::uint64_t size)
      : Filter(std::move(child)),
        node_(node),
        align_(align),
        step_(size),
        data_end_(this->child().size()),
        file_end_(data_end_) {}

  std::uint64_t size() const override { return data_end_; }

  Task<void> read(GuestOffset offset, IoVec data) override {
    const std::uint64_t valid = std::min(data.size(), data_end_ - offset.bytes());
    co_await child().read(offset, data.first(valid));
    data.slice(valid).fill(std::byte{0});
  }

  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override {
    co_await make_room({offset, data.size()});
    // Before the write: if it fails half-way, what it left is no longer known to be zeros.
    data_end_ = std::max(data_end_, (offset + data.size()).bytes());
    co_await child().write(offset, data, flags);
  }

  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override {
    co_await make_room(range);
    const std::uint64_t end = range.end().bytes();
    // What has been added in front is zeros already.
    const bool is_zero = range.start.bytes() >= data_end_ && end <= file_end_;
    data_end_ = std::max(data_end_, end);
    if (!is_zero) co_await child().write_zeroes(range, flags);
  }

  Task<void> truncate(std::uint64_t size, TruncateOptions options) override {
    // Protects file_end_ while it changes; innermost lock, nothing but I/O is waited for under it.
    AsyncMutex::Guard guard = co_await growth_.lock();
    // First without what was added in front: it is not what the caller means to keep.
    co_await cut_off();
    co_await child().truncate(size, options);
    data_end_ = file_end_ = child().size();
  }

  Task<void> reopen(bool read_only) override {
    if (read_only) co_await cut_off();
  }

  std::span<const std::string_view> changeable_options() const override {
    static constexpr std::string_view names[] = {"prealloc-align", "prealloc-size"};
    return names;
  }
  Task<std::function<void()>> prepare_reopen(OpenContext& context) override;

  Task<void> close() override {
    std::exception_ptr failure;
    try {
      if (!node_.read_only()) co_await cut_off();
    } catch (...) {
      failure = std::current_exception();
    }
    co_await Filter::close();
    if (failure) std::rethrow_exception(failure);
  }

  Permissions child_permissions(const Child& edge, Permissions parents) const override {
    Permissions needs = Filter::child_permissions(edge, parents);
    if (node_.read_only()) return needs;
    // Cutting off needs the right even when nobody above has it any more.
    needs.uses |= PermissionSet(Permission::write) | Permission::resize;
    needs.shares = needs.shares.without(PermissionSet(Permission::write) | Permission::resize);
    return needs;
  }

 private:
  Task<void> make_room(GuestRange range);
  Task<bool> add_space(std::uint64_t size);
  Task<void> cut_off();

  Node& node_;
  std::uint64_t align_;      // of the file's size, bytes
  std::uint64_t step_;       // bytes added beyond what is needed
  std::uint64_t data_end_;   // the size that the parent knows
  std::uint64_t file_end_;   // behind what was added in front; below that, zeros
  bool impossible_ = false;  // the file cannot be allocated ahead
  AsyncMutex growth_;
};

Task<void> PreallocateDriver::make_room(GuestRange range) {
  const std::uint64_t end = range.end().bytes();
  if (end <= file_end_ || impossible_) co_return;
  AsyncMutex::Guard guard = co_await growth_.lock();
  if (end <= file_end_ || impossible_) co_return;
  if (end > INT64_MAX - step_ - align_) co_return;  // the write itself will tell
  const std::uint64_t size = divide_up(end + step_, align_) * align_;
  const bool added = co_await add_space(size);
  if (added) file_end_ = size;
}

// False where the file cannot be allocated ahead; it grows as it is written then.
Task<bool> PreallocateDriver::add_space(std::uint64_t size) {
  try {
    co_await child().truncate(
        size, TruncateOptions{.preallocation = Preallocation::falloc, .allow_shrink = false});
  } catch (const Error& error) {
    if (error.code() == ENOTSUP || error.code() == EOPNOTSUPP) impossible_ = true;
    co_return false;
  }
  co_return true;
}

Task<void> PreallocateDriver::cut_off() {
  if (child().size() > data_end_) co_await child().truncate(data_end_);
  file_end_ = data_end_;
}

struct Steps {
  std::uint64_t align, size;  // bytes
};

Steps read_steps(OpenContext& context) {
  const auto options = read_options<qapi::BlockdevOptionsPreallocate>(context);
  const std::uint64_t align = options.prealloc_align.value_or(default_align);
  const std::uint64_t size = options.prealloc_size.value_or(default_size);
  if (align == 0 || align % 512 != 0 || align > (1u << 30)) {
    throw Error(EINVAL, fmt::format("Parameter '{}prealloc-align' expects a multiple of 512 up to "
                                    "1 GiB, not {}",
                                    context.option_path(), align));
  }
  if (size > INT64_MAX / 2) {
    throw Error(EINVAL, fmt::format("Parameter '{}prealloc-size' expects at most {} bytes, not {}",
                                    context.option_path(), INT64_MAX / 2, size));
  }
  return {align, size};
}

Task<std::function<void()>> PreallocateDriver::prepare_reopen(OpenContext& context) {
  const Steps steps = read_steps(context);
  if (child().size() != file_end_) {
    throw Error(EINVAL, fmt::format("The file below a preallocate node cannot be replaced by one "
                                    "of {} bytes, as it had {}",
                                    child().size(), file_end_));
  }
  co_return [this, steps] {
    align_ = steps.align;
    step_ = steps.size;
  };
}

Task<std::unique_ptr<Driver>> open(OpenContext& context) {
  const Steps steps = read_steps(context);
  std::unique_ptr<Child> child =
      co_await context.open_child(std::string("file"), EdgeRole::filtered);
  co_return std::make_unique<PreallocateDriver>(context.node(), std::move(child), steps.align,
                                                steps.size);
}

}  // namespace

const DriverType preallocate_driver = {
    .name = "preallocate", .kind = DriverKind::filter, .open = open};

}  // namespace vise
