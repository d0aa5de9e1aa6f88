// Dirty bitmaps: adding, removing, clearing, merging.
#include <fmt/format.h>
#include <glib.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "graph/bitmaps.h"
#include "monitor/bitmap_actions.h"
#include "monitor/commands.h"
#include "monitor/job_settings.h"
#include "vise/error.h"

namespace vise {

namespace {

DirtyBitmap copy_of(const DirtyBitmap& bits) {
  DirtyBitmap copy(bits.size(), bits.granularity());
  copy.merge(bits);
  return copy;
}

class AddBitmap final : public Action {
 public:
  AddBitmap(Node& node, qapi::BlockDirtyBitmapAdd wanted)
      : node_(node.shared_from_this()), wanted_(std::move(wanted)) {}

  Task<void> prepare() override {
    BitmapOptions options;
    options.name = wanted_.name;
    options.granularity = wanted_.granularity;
    options.persistent = wanted_.persistent.value_or(false);
    options.enabled = !wanted_.disabled.value_or(false);
    add_bitmap(*node_, options);
    co_return;
  }
  Task<void> roll_back() override {
    // It was not there before, so the image cannot have it.
    bitmaps_of(*node_).remove(get_bitmap(*node_, wanted_.name));
    co_return;
  }

 private:
  std::shared_ptr<Node> node_;
  const qapi::BlockDirtyBitmapAdd wanted_;
};

// Only commit() touches the image: until then the bitmap is in use, and so left alone by others.
class RemoveBitmap final : public Action {
 public:
  RemoveBitmap(Node& node, std::string name)
      : node_(node.shared_from_this()), name_(std::move(name)) {}

  Task<void> prepare() override {
    check_removable(*node_, name_);
    NodeBitmap& bitmap = get_bitmap(*node_, name_);
    ++bitmap.users;
    co_return;
  }
  Task<void> commit() override {
    --get_bitmap(*node_, name_).users;
    co_await remove_bitmap(*node_, name_);
  }
  Task<void> roll_back() override {
    --get_bitmap(*node_, name_).users;
    co_return;
  }

 private:
  std::shared_ptr<Node> node_;
  const std::string name_;
};

class ClearBitmap final : public Action {
 public:
  ClearBitmap(Node& node, std::string name)
      : node_(node.shared_from_this()), name_(std::move(name)) {}

  Task<void> prepare() override {
    old_ = copy_of(get_bitmap(*node_, name_).bits);
    clear_bitmap(*node_, name_);
    co_return;
  }
  Task<void> roll_back() override {
    // What has been written since is marked already.
    get_bitmap(*node_, name_).bits.merge(*old_);
    co_return;
  }

 private:
  std::shared_ptr<Node> node_;
  const std::string name_;
  std::optional<DirtyBitmap> old_;
};

class RecordBitmap final : public Action {
 public:
  RecordBitmap(Node& node, std::string name, Recording recording)
      : node_(node.shared_from_this()), name_(std::move(name)), recording_(recording) {}

  Task<void> prepare() override {
    was_enabled_ = get_bitmap(*node_, name_).enabled;
    if (recording_ == Recording::on) {
      enable_bitmap(*node_, name_);
    } else {
      disable_bitmap(*node_, name_);
    }
    co_return;
  }
  Task<void> roll_back() override {
    get_bitmap(*node_, name_).enabled = was_enabled_;
    co_return;
  }

 private:
  std::shared_ptr<Node> node_;
  const std::string name_;
  const Recording recording_;
  bool was_enabled_ = false;
};

class MergeBitmap final : public Action {
 public:
  MergeBitmap(Services& services, qapi::BlockDirtyBitmapMerge merge)
      : services_(services), merge_(std::move(merge)) {}

  Task<void> prepare() override {
    Node& node = get_device(services_, merge_.node);
    node_ = node.shared_from_this();
    NodeBitmap& target = get_bitmap(node, merge_.target);
    old_ = copy_of(target.bits);
    try {
      for (const qapi::BlockDirtyBitmapOrStr& source : merge_.bitmaps) {
        merge_bitmap(node, merge_.target, source_of(node, source));
      }
    } catch (...) {
      target.bits = std::move(*old_);
      throw;
    }
    co_return;
  }
  Task<void> roll_back() override {
    get_bitmap(*node_, merge_.target).bits = std::move(*old_);
    co_return;
  }

 private:
  const NodeBitmap& source_of(Node& node, const qapi::BlockDirtyBitmapOrStr& source) {
    if (const auto* name = std::get_if<std::string>(&source.value)) return get_bitmap(node, *name);
    const auto& other = std::get<qapi::BlockDirtyBitmap>(source.value);
    return get_bitmap(get_device(services_, other.node), other.name);
  }

  Services& services_;
  const qapi::BlockDirtyBitmapMerge merge_;
  std::shared_ptr<Node> node_;
  std::optional<DirtyBitmap> old_;
};

Task<void> block_dirty_bitmap_add(Services& services, qapi::BlockDirtyBitmapAdd wanted) {
  return run_action(add_bitmap_action(services, std::move(wanted)));
}
Task<void> block_dirty_bitmap_remove(Services& services, qapi::BlockDirtyBitmap which) {
  return run_action(remove_bitmap_action(services, std::move(which)));
}
Task<void> block_dirty_bitmap_clear(Services& services, qapi::BlockDirtyBitmap which) {
  return run_action(clear_bitmap_action(services, std::move(which)));
}
Task<void> block_dirty_bitmap_enable(Services& services, qapi::BlockDirtyBitmap which) {
  return run_action(record_bitmap_action(services, std::move(which), Recording::on));
}
Task<void> block_dirty_bitmap_disable(Services& services, qapi::BlockDirtyBitmap which) {
  return run_action(record_bitmap_action(services, std::move(which), Recording::off));
}
Task<void> block_dirty_bitmap_merge(Services& services, qapi::BlockDirtyBitmapMerge merge) {
  return run_action(merge_bitmap_action(services, std::move(merge)));
}

Task<qapi::BlockDirtyBitmapSha256> sha256(Services& services, qapi::BlockDirtyBitmap which) {
  const NodeBitmap& bitmap = get_bitmap(get_device(services, which.node), which.name);
  const DirtyBitmap& bits = bitmap.bits;
  const auto free_checksum = [](GChecksum* checksum) { g_checksum_free(checksum); };
  const std::unique_ptr<GChecksum, decltype(free_checksum)> checksum(
      g_checksum_new(G_CHECKSUM_SHA256), free_checksum);
  // In whole words of 64 bits, as clients of other servers see it.
  const std::uint64_t size = (bits.serialized_size() + 7) / 8 * 8;
  std::vector<std::byte> part(64u << 10);
  for (std::uint64_t at = 0; at < size; at += part.size()) {
    part.resize(std::min<std::uint64_t>(part.size(), size - at));
    bits.save(at, part);
    g_checksum_update(checksum.get(), reinterpret_cast<const guchar*>(part.data()),
                      static_cast<gssize>(part.size()));
  }
  qapi::BlockDirtyBitmapSha256 result;
  result.sha256 = g_checksum_get_string(checksum.get());
  co_return result;
}

}  // namespace

std::unique_ptr<Action> add_bitmap_action(Services& services, qapi::BlockDirtyBitmapAdd wanted) {
  Node& node = get_device(services, wanted.node);
  return std::make_unique<AddBitmap>(node, std::move(wanted));
}

std::unique_ptr<Action> remove_bitmap_action(Services& services, qapi::BlockDirtyBitmap which) {
  return std::make_unique<RemoveBitmap>(get_device(services, which.node), which.name);
}

std::unique_ptr<Action> clear_bitmap_action(Services& services, qapi::BlockDirtyBitmap which) {
  return std::make_unique<ClearBitmap>(get_device(services, which.node), which.name);
}

std::unique_ptr<Action> record_bitmap_action(Services& services, qapi::BlockDirtyBitmap which,
                                             Recording recording) {
  return std::make_unique<RecordBitmap>(get_device(services, which.node), which.name, recording);
}

std::unique_ptr<Action> merge_bitmap_action(Services& services, qapi::BlockDirtyBitmapMerge merge) {
  return std::make_unique<MergeBitmap>(services, std::move(merge));
}

void add_bitmap_commands(CommandTable& commands) {
  namespace command = qapi::command;
  commands.add<command::block_dirty_bitmap_add, block_dirty_bitmap_add>();
  commands.add<command::block_dirty_bitmap_remove, block_dirty_bitmap_remove>();
  commands.add<command::block_dirty_bitmap_clear, block_dirty_bitmap_clear>();
  commands.add<command::block_dirty_bitmap_enable, block_dirty_bitmap_enable>();
  commands.add<command::block_dirty_bitmap_disable, block_dirty_bitmap_disable>();
  commands.add<command::block_dirty_bitmap_merge, block_dirty_bitmap_merge>();
  commands.add<command::x_debug_block_dirty_bitmap_sha256, sha256>();
}

}  // namespace vise
