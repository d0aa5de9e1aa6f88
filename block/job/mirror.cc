#include "job/mirror.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "bitmap/dirty_bitmap.h"
#include "copy/chain_source.h"
#include "copy/slot_holder.h"
#include "graph/chain.h"
#include "graph/drained.h"
#include "job/copy_job.h"
#include "job/job_filter.h"
#include "util/clean_up.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

using Purpose = MirrorSettings::Purpose;
using SyncMode = qapi::MirrorSyncMode;

std::uint64_t unit_for(const MirrorSettings& settings) {
  if (settings.granularity) return *settings.granularity;
  const std::uint64_t cluster = settings.target->driver().limits().cluster_size;
  return cluster == 0 ? 64u << 10 : std::max<std::uint64_t>(cluster, 4096);
}

// Bytes that are copied at once, at most.
std::uint64_t chunk_for(const MirrorSettings& settings, std::uint64_t unit) {
  constexpr std::uint64_t usual = 512u << 10;
  const std::uint64_t most = settings.buffer_size == 0 ? usual : settings.buffer_size;
  return std::max(unit, align_down(std::min(most, std::max(usual, unit)), unit));
}

class MirrorJob final : public CopyJob {
 public:
  MirrorJob(EventBus& events, MirrorSettings settings)
      : CopyJob(events,
                settings.purpose == Purpose::commit ? qapi::JobType::commit : qapi::JobType::mirror,
                settings.job),
        purpose_(settings.purpose),
        sync_(settings.sync),
        blocks_writes_(settings.copy_mode == qapi::MirrorCopyMode::write_blocking),
        chunk_size_(chunk_for(settings, unit_for(settings))),
        buffers_(settings.buffer_size == 0
                     ? UINT64_MAX
                     : std::max<std::uint64_t>(1, settings.buffer_size / chunk_size_)),
        device_(settings.device->shared_from_this()),
        target_node_(settings.target->shared_from_this()),
        replaced_(settings.replaces == nullptr ? nullptr : settings.replaces->shared_from_this()),
        unit_(unit_for(settings)),
        todo_(device_->size(), unit_) {
    nodes_ = {device_.get(), &image_of(*device_), target_node_.get(), &image_of(*target_node_)};
    if (replaced_) nodes_.push_back(replaced_.get());
    const Limits limits = target_node_->driver().limits();
    options_.may_unmap = settings.may_unmap;
    options_.encoded = limits.can_compress && target_node_->type().name == "compress";
  }

  Task<void> prepare(std::optional<std::string> filter_name, const JobTable& jobs) {
    for (const Node* node : nodes_) jobs.require_idle(*node);
    user_ = fmt::format("{} job '{}'", to_string(type()), id());
    const bool commits = purpose_ == Purpose::commit;
    if (commits && target_node_->read_only()) {
      co_await target_node_->graph().reopen(*target_node_, false);
      was_read_only_ = true;
    }
    Permissions writes{
        PermissionSet(Permission::consistent_read) | Permission::write | Permission::resize,
        Permissions::all()};
    if (!commits) writes.shares = PermissionSet(Permission::write_unchanged);
    std::unique_ptr<Child> target =
        co_await target_node_->graph().attach(nullptr, user_, EdgeRole::root, target_node_, writes);
    target_ = std::move(target);
    if (commits && target_->size() < device_->size()) co_await target_->truncate(device_->size());
    std::unique_ptr<PlacedFilter> filter = co_await PlacedFilter::place(
        *device_, mirror_filter_type, std::move(filter_name),
        commits ? JobFilter::Sharing::all : JobFilter::Sharing::exclusive);
    filter_ = std::move(filter);
    std::unique_ptr<ChainSource> source = co_await ChainSource::open(
        *device_, commits ? target_node_.get() : nullptr, user_,
        commits ? ChainSource::Sharing::all : ChainSource::Sharing::top_written);
    source_ = std::move(source);
    const std::function<Task<void>()> work = [this] { return begin(); };
    co_await while_drained(filter_->node(), work);
  }

  std::vector<Node*> nodes() const override { return nodes_; }

  void describe(qapi::BlockJobInfo& info) const override {
    if (purpose_ == Purpose::mirror) info.actively_synced = in_step_ && is_ready();
  }

  Task<void> clean() override {
    CleanUp steps;
    if (source_) co_await steps.step(source_->close());
    if (target_) co_await steps.step(target_->detach());
    target_.reset();
    const bool takes_place = switches_ && replaced_ == nullptr;
    if (filter_) co_await steps.step(filter_->remove_onto(takes_place ? *target_node_ : *device_));
    if (was_read_only_ && !switches_) {
      co_await steps.step(target_node_->graph().reopen(*target_node_, true));
    }
    nodes_.clear();
    filter_.reset();
    if (drained_) drained_->drain_end();
    drained_.reset();
    Graph& graph = device_->graph();
    co_await graph.release(std::move(device_));
    co_await graph.release(std::move(target_node_));
    if (replaced_) co_await graph.release(std::move(replaced_));
    steps.finish();
  }

 protected:
  Task<void> run() override {
    if (!started_) co_await find_work();
    for (;;) {
      co_await copy_all();
      if (!is_ready()) {
        co_await target_->flush();
        become_ready();
      }
      if (should_end()) co_return;
      if (blocks_writes_ && !todo_.next_dirty(GuestOffset(0))) in_step_ = true;
      if (!todo_.next_dirty(GuestOffset(0))) co_await wait_for_change();
      co_await checkpoint();
    }
  }

  Task<std::optional<GuestRange>> next(GuestOffset from) override {
    std::optional<GuestRange> chunk = next_dirty_chunk(todo_, from, chunk_size(unit_));
    if (chunk) chunk->length = std::min(chunk->length, chunk_size_);
    co_return chunk;
  }

  Task<void> copy(GuestRange range, Turn& turn) override { return copy_todo(range, &turn); }

  // The last of it is copied while nobody writes; then the target takes the place of the node.
  Task<void> commit() override {
    std::shared_ptr<Node> filter = filter_->node().shared_from_this();
    co_await filter->drain_begin();
    drained_ = std::move(filter);  // until clean(): nothing may be written to the old node any more
    co_await finish();
    if (replaced_ && !was_soft_cancelled()) co_await replace();
    switches_ = !was_soft_cancelled();
  }

  void take_change(const qapi::JobChangeOptions& options) override {
    const auto& mirror = std::get<qapi::JobChangeOptionsMirror>(options.branch);
    const bool blocks = mirror.copy_mode == qapi::MirrorCopyMode::write_blocking;
    if (blocks_writes_ && !blocks) {
      throw Error(ENOTSUP, "Change to copy mode 'background' is not implemented");
    }
    blocks_writes_ = blocks;
    wake();
  }

 private:
  Task<void> begin() {
    if (sync_ == SyncMode::full && purpose_ == Purpose::mirror && device_->size() > 0) {
      todo_.set({GuestOffset(0), device_->size()});
      started_ = true;
    }
    if (sync_ == SyncMode::none) started_ = true;
    set_total(std::min(todo_.dirty_bytes(), device_->size()));
    filter_->filter().after_change = [this](GuestRange range) { return changed(range); };
    co_return;
  }

  // Marks go before the content is read: what is written meanwhile is marked anew. `turn` may be
  // null.
  Task<void> copy_todo(GuestRange range, Turn* turn) {
    co_await buffers_.acquire();
    const SlotHolder buffer(buffers_);
    const CopyLocks::Guard guard = co_await copies_.lock(range, CopyLocks::Kind::copy);
    const std::vector<GuestRange> parts = dirty_stretches(todo_, range);
    for (const GuestRange& part : parts) todo_.clear(part);
    try {
      co_await copy_stretches(*source_, *target_, parts, options_, turn);
    } catch (...) {
      for (const GuestRange& part : parts) todo_.set(part);
      throw;
    }
    for (const GuestRange& part : parts) add_done(part.length);
  }

  // What the device shows through filters: the target takes its place below them. Drained.
  Task<void> replace() {
    co_await target_->detach();
    target_.reset();
    co_await source_->close();
    source_.reset();
    const std::function<Task<void>()> work = [this] {
      return move_users(*replaced_, target_node_, nullptr);
    };
    co_await while_drained(*replaced_, work);
  }

  // What the layers above the base have; what is written meanwhile is marked by then.
  Task<void> find_work() {
    const bool commits = purpose_ == Purpose::commit;
    const Node* const end = commits ? target_node_.get() : backing_of(*device_);
    const std::uint64_t size = device_->size();
    for (std::uint64_t at = 0; at < size;) {
      co_await checkpoint();
      const GuestRange rest{GuestOffset(at), std::min<std::uint64_t>(size - at, 1u << 30)};
      const BlockStatus status =
          co_await block_status(*device_, rest, MapMode::allocation_only, end);
      const bool past_a_short_one = commits && status.zero;
      if (status.allocated || past_a_short_one) mark({rest.start, status.length});
      at += status.length;
    }
    started_ = true;
  }

  void mark(GuestRange range) {
    const std::uint64_t before = todo_.dirty_bytes();
    todo_.set(range);
    add_total(todo_.dirty_bytes() - before);
  }

  Task<void> changed(GuestRange range) {
    range = range.intersection({GuestOffset(0), device_->size()});
    if (range.empty()) co_return;
    mark(range);
    wake();
    if (!blocks_writes_ || ended_) co_return;
    try {
      const GuestRange whole{GuestOffset(0), device_->size()};
      co_await copy_todo(range.align_out(unit_).intersection(whole), nullptr);
    } catch (const Error&) {
      in_step_ = false;  // it is marked again; the job meets the error on its own
    }
  }

  Task<void> finish() {
    while (const std::optional<GuestRange> part = todo_.next_dirty(GuestOffset(0))) {
      co_await copy_todo(*part, nullptr);
    }
    co_await target_->flush();
    ended_ = true;
    filter_->filter().after_change = nullptr;
  }

  const Purpose purpose_;
  const SyncMode sync_;
  bool blocks_writes_;
  bool in_step_ = false;            // nothing was left when writes were held back already
  const std::uint64_t chunk_size_;  // bytes
  AsyncSemaphore buffers_;          // chunks on their way
  std::shared_ptr<Node> device_;
  std::shared_ptr<Node> target_node_;
  std::shared_ptr<Node> replaced_;  // null: the device
  const std::uint64_t unit_;        // bytes, of what is copied at once
  DirtyBitmap todo_;                // what the target does not have, or has in an older form
  CopyLocks copies_;
  StretchOptions options_;
  std::string user_;
  std::vector<Node*> nodes_;
  bool was_read_only_ = false;
  bool started_ = false;           // what is there at first has been marked
  bool ended_ = false;             // all has been copied, and nobody writes
  bool switches_ = false;          // the target takes the place of the node
  std::shared_ptr<Node> drained_;  // the filter, from commit() to clean()
  std::unique_ptr<Child> target_;
  std::unique_ptr<PlacedFilter> filter_;
  std::unique_ptr<ChainSource> source_;
};

// Does `device` show what `node` holds, through nothing but filters?
bool shows(const Node& device, const Node& node) {
  const Node* found = &device;
  while (found != &node) {
    const Child* const below = found->filtered_child();
    if (below == nullptr) return false;
    found = &below->node();
  }
  return true;
}

void check(const MirrorSettings& settings) {
  if (&image_of(*settings.device) == &image_of(*settings.target)) {
    throw Error(EINVAL, "Source and target cannot be the same");
  }
  if (settings.granularity) {
    const std::uint64_t granularity = *settings.granularity;
    if (granularity < 512 || granularity > 64u << 20 || (granularity & (granularity - 1)) != 0) {
      throw Error(EINVAL, fmt::format("Parameter 'granularity' expects a power of 2 from 512 to "
                                      "64 MiB, not {}",
                                      granularity));
    }
  }
  if (settings.purpose == Purpose::commit) return;
  if (settings.sync == SyncMode::incremental || settings.sync == SyncMode::bitmap) {
    throw Error(ENOTSUP, fmt::format("Sync mode '{}' not supported", to_string(settings.sync)));
  }
  if (settings.device->size() != settings.target->size()) {
    throw Error(EINVAL, fmt::format("The target has {} bytes, the source {}",
                                    settings.target->size(), settings.device->size()));
  }
  if (settings.replaces != nullptr && !shows(*settings.device, *settings.replaces)) {
    throw Error(EINVAL, fmt::format("Cannot replace '{}' by a node mirrored from '{}', because it "
                                    "cannot be guaranteed that doing so would not lead to an "
                                    "abrupt change of visible data",
                                    settings.replaces->name(), settings.device->name()));
  }
  for (const Child* edge : settings.device->parents()) {
    if (edge->parent() != nullptr && edge->role() != EdgeRole::filtered) {
      throw Error(EPERM, fmt::format("Need a root block node, but '{}' is below '{}'",
                                     settings.device->name(), edge->parent()->name()));
    }
  }
}

}  // namespace

Task<std::shared_ptr<Job>> make_mirror_job(JobTable& jobs, MirrorSettings settings) {
  check(settings);
  if (settings.replaces == settings.device) settings.replaces = nullptr;
  std::optional<std::string> filter_name = std::move(settings.filter_node_name);
  const auto job = std::make_shared<MirrorJob>(jobs.events(), std::move(settings));
  Task<void> preparation = job->prepare(std::move(filter_name), jobs);
  co_return co_await CopyJob::prepared(job, std::move(preparation));
}

}  // namespace vise
