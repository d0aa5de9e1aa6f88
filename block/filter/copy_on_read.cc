// copy-on-read: what a read finds in a backing image is written to the image on top, so that the
// next read finds it there.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "filter/filters.h"
#include "util/copy_locks.h"
#include "util/driver_options.h"
#include "vise/error.h"
#include "vise/filter.h"
#include "vise/graph.h"
#include "vise/sync.h"

namespace vise {

namespace {

constexpr std::uint64_t most_at_once = 1u << 20;  // bytes copied in one go

class CopyOnReadDriver final : public Filter {
 public:
  CopyOnReadDriver(Node& node, std::unique_ptr<Child> child, const Node* bottom)
      : Filter(std::move(child)), node_(node), bottom_(bottom) {}

  Task<void> read(GuestOffset offset, IoVec data) override;

  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override {
    const CopyLocks::Guard guard = co_await locks_.lock({offset, data.size()}, change);
    co_await Filter::write(offset, data, flags);
  }
  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override {
    const CopyLocks::Guard guard = co_await locks_.lock(range, change);
    co_await Filter::write_zeroes(range, flags);
  }
  Task<void> discard(GuestRange range) override {
    const CopyLocks::Guard guard = co_await locks_.lock(range, change);
    co_await Filter::discard(range);
  }
  Task<void> truncate(std::uint64_t size, TruncateOptions options) override {
    const CopyLocks::Guard guard = co_await locks_.lock({GuestOffset(0), UINT64_MAX}, change);
    co_await Filter::truncate(size, options);
  }
  Task<bool> write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                           WriteFlags flags) override {
    std::uint64_t length = 0;
    for (const EncodedExtent& extent : extents) length += extent.guest_length;
    const CopyLocks::Guard guard = co_await locks_.lock({offset, length}, change);
    co_return co_await Filter::write_encoded(offset, extents, flags);
  }

  // Others must not write past this node: a copy could overwrite what they have written.
  Permissions child_permissions(const Child& edge, Permissions parents) const override {
    Permissions needs = Filter::child_permissions(edge, parents);
    if (node_.read_only()) return needs;
    needs.uses |= PermissionSet(Permission::consistent_read) | Permission::write_unchanged;
    needs.shares = needs.shares.without(PermissionSet(Permission::write) | Permission::resize);
    return needs;
  }

 private:
  static constexpr CopyLocks::Kind change = CopyLocks::Kind::change;

  struct Stretch {
    std::uint64_t length;
    bool copies;
  };
  Task<Stretch> find_stretch(GuestRange range);
  Task<void> read_copying(GuestRange range, IoVec data);
  Task<void> copy(GuestRange range, Buffer& content);

  Node& node_;
  const Node* const bottom_;  // the lowest image to copy from; null: all
  CopyLocks locks_;
};

// Does the start of `range` come from below the image on top, and from where it is to be copied?
Task<CopyOnReadDriver::Stretch> CopyOnReadDriver::find_stretch(GuestRange range) {
  const Node* base = nullptr;
  if (bottom_ != nullptr) {
    if (const Child* below = bottom_->backing_child()) base = &below->node();
  }
  const BlockStatus status =
      co_await block_status(child().node(), range, MapMode::allocation_only, base);
  const bool above = status.allocated && status.depth == 0;
  // Without a limit, what is nowhere is made zeros of its own as well.
  const bool copies = !above && (status.allocated || bottom_ == nullptr);
  co_return Stretch{status.length, copies};
}

Task<void> CopyOnReadDriver::read(GuestOffset offset, IoVec data) {
  if (node_.read_only()) {
    co_await Filter::read(offset, data);
    co_return;
  }
  const std::uint64_t visible = std::min(data.size(), size() - offset.bytes());
  for (std::uint64_t done = 0; done < visible;) {
    const GuestRange rest{offset + done, std::min(visible - done, most_at_once)};
    const Stretch stretch = co_await find_stretch(rest);
    const IoVec part = data.slice(done, stretch.length);
    if (stretch.copies) {
      co_await read_copying({rest.start, stretch.length}, part);
    } else {
      co_await child().read(rest.start, part);
    }
    done += stretch.length;
  }
  data.slice(visible).fill(std::byte{0});
}

// Copies whole clusters, as the image would have to be asked for the rest of them anyway.
Task<void> CopyOnReadDriver::read_copying(GuestRange range, IoVec data) {
  const std::uint64_t unit = std::max<std::uint64_t>(child().limits().cluster_size, 1);
  GuestRange whole = range.align_out(unit);
  whole.length = std::min(whole.length, size() - whole.start.bytes());
  const CopyLocks::Guard guard = co_await locks_.lock(whole, CopyLocks::Kind::copy);
  Buffer content(whole.length);
  co_await child().read(whole.start, IoVec(content.span()));
  data.copy_from(content.span().subspan(range.start - whole.start, range.length));
  co_await copy(whole, content);
}

// Parts may have been written before the lock was held: those are left alone.
Task<void> CopyOnReadDriver::copy(GuestRange range, Buffer& content) {
  for (std::uint64_t done = 0; done < range.length;) {
    const GuestRange rest{range.start + done, range.length - done};
    const Stretch stretch = co_await find_stretch(rest);
    if (stretch.copies) {
      const ConstIoVec part(content.span().subspan(done, stretch.length));
      try {
        co_await child().event(Event::cor_write);
        co_await child().write(rest.start, part, WriteFlags{.unchanged = true});
      } catch (const Error&) {
        // Whoever reads has what he asked for; the copy can be made another time.
        co_return;
      }
    }
    done += stretch.length;
  }
}

const Node* find_bottom(const OpenContext& context, const Child& child, const std::string& name) {
  for (const Node* node = &child.node(); node != nullptr;) {
    if (node->name() == name) {
      if (node->type().kind != DriverKind::filter) return node;
      throw Error(EINVAL, fmt::format("Option '{}bottom': node '{}' is a filter, not an image",
                                      context.option_path(), name));
    }
    const Child* below = node->filtered_child();
    if (below == nullptr) below = node->backing_child();
    node = below != nullptr ? &below->node() : nullptr;
  }
  throw Error(EINVAL, fmt::format("Option '{}bottom': there is no node '{}' below",
                                  context.option_path(), name));
}

Task<std::unique_ptr<Driver>> open(OpenContext& context) {
  const auto options = read_options<qapi::BlockdevOptionsCopyOnRead>(context);
  std::unique_ptr<Child> child =
      co_await context.open_child(std::string("file"), EdgeRole::filtered);
  const Node* bottom = nullptr;
  if (options.bottom) bottom = find_bottom(context, *child, *options.bottom);
  co_return std::make_unique<CopyOnReadDriver>(context.node(), std::move(child), bottom);
}

}  // namespace

const DriverType copy_on_read_driver = {
    .name = "copy-on-read", .kind = DriverKind::filter, .open = open};

}  // namespace vise
