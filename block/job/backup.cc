#include "job/backup.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "bitmap/dirty_bitmap.h"
#include "copy/chain_source.h"
#include "graph/chain.h"
#include "graph/drained.h"
#include "job/bitmap_handover.h"
#include "job/copy_job.h"
#include "job/job_filter.h"
#include "util/clean_up.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

using SyncMode = qapi::MirrorSyncMode;
using BitmapMode = qapi::BitmapSyncMode;

constexpr std::uint64_t least_unit = 64u << 10;

// The table of which modes go together; gives the mode that counts.
std::optional<BitmapMode> check_modes(const BackupSettings& settings) {
  const bool by_bitmap =
      settings.sync == SyncMode::incremental || settings.sync == SyncMode::bitmap;
  if (!settings.bitmap) {
    if (settings.bitmap_mode)
      throw Error(EINVAL, "Bitmap sync mode given without providing a bitmap");
    if (by_bitmap) {
      throw Error(EINVAL, fmt::format("must provide a valid bitmap name for '{}' sync mode",
                                      to_string(settings.sync)));
    }
    return std::nullopt;
  }
  if (settings.sync == SyncMode::none) {
    throw Error(EINVAL, "sync mode 'none' does not work with a bitmap");
  }
  if (settings.sync == SyncMode::incremental) {
    if (settings.bitmap_mode.value_or(BitmapMode::on_success) != BitmapMode::on_success) {
      throw Error(EINVAL,
                  "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'");
    }
    return BitmapMode::on_success;
  }
  if (!settings.bitmap_mode)
    throw Error(EINVAL, "Bitmap sync mode must be given when providing a bitmap");
  if (settings.sync != SyncMode::bitmap && *settings.bitmap_mode == BitmapMode::never) {
    throw Error(EINVAL, fmt::format("Bitmap sync mode 'never' has no meaning for sync mode '{}'",
                                    to_string(settings.sync)));
  }
  return settings.bitmap_mode;
}

std::uint64_t unit_for(const BackupSettings& settings) {
  const std::uint64_t cluster_size = settings.target->driver().limits().cluster_size;
  return std::max({least_unit, cluster_size, settings.least_unit});
}

class BackupJob final : public CopyJob {
 public:
  BackupJob(EventBus& events, BackupSettings settings, std::optional<BitmapMode> bitmap_mode)
      : CopyJob(events, qapi::JobType::backup, std::move(settings.job)),
        sync_(settings.sync),
        bitmap_mode_(bitmap_mode),
        device_(settings.device->shared_from_this()),
        target_node_(settings.target->shared_from_this()),
        unit_(unit_for(settings)),
        chunk_(chunk_for(settings, unit_)),
        discards_source_(settings.discard_source),
        todo_(device_->size(), unit_) {
    const Limits limits = target_node_->driver().limits();
    set_most_in_flight(settings.most_in_flight);
    options_.compressed = settings.compress;
    options_.encoded =
        limits.can_compress && (settings.compress || target_node_->type().name == "compress");
  }

  Task<void> prepare(std::optional<std::string> bitmap, std::optional<std::string> filter_name) {
    user_ = fmt::format("backup job '{}'", id());
    const Permissions writes{
        PermissionSet(Permission::consistent_read) | Permission::write,
        Permissions::all().without(PermissionSet(Permission::write) | Permission::resize)};
    std::unique_ptr<Child> target =
        co_await target_node_->graph().attach(nullptr, user_, EdgeRole::root, target_node_, writes);
    target_ = std::move(target);
    std::unique_ptr<PlacedFilter> filter =
        co_await PlacedFilter::place(*device_, backup_filter_type, std::move(filter_name));
    filter_ = std::move(filter);
    if (discards_source_) co_await filter_->allow_discards();
    std::unique_ptr<ChainSource> source =
        co_await ChainSource::open(*device_, nullptr, user_, ChainSource::Sharing::top_written);
    source_ = std::move(source);
    const std::function<Task<void>()> work = [&] { return begin(bitmap); };
    co_await while_drained(filter_->node(), work);
  }

  std::vector<Node*> nodes() const override { return {target_node_.get()}; }
  Node& device() const { return *device_; }

  Task<void> clean() override {
    CleanUp steps;
    if (filter_) co_await steps.step(filter_->remove());
    if (source_) co_await steps.step(source_->close());
    if (target_) co_await steps.step(target_->detach());
    handover_.reset();
    Graph& graph = device_->graph();
    co_await graph.release(std::move(device_));
    co_await graph.release(std::move(target_node_));
    steps.finish();
  }

 protected:
  Task<void> run() override {
    co_await leave_out_unallocated();
    if (sync_ == SyncMode::none) {
      while (!broken_) {
        co_await checkpoint();
        co_await wait_for_change();
      }
    } else {
      co_await copy_all();
    }
    if (broken_) throw *broken_;
    co_await target_->flush();
  }

  Task<std::optional<GuestRange>> next(GuestOffset from) override {
    if (broken_) throw *broken_;
    co_return next_dirty_chunk(todo_, from, chunk_);
  }

  Task<void> copy(GuestRange range, Turn& turn) override { return copy_todo(range, &turn); }

  Task<void> commit() override {
    if (handover_) {
      handover_->end(*bitmap_mode_ == BitmapMode::never ? BitmapHandover::Outcome::keep
                                                        : BitmapHandover::Outcome::written,
                     todo_);
      handover_.reset();
    }
    co_return;
  }

  Task<void> abort() override {
    if (handover_ && *bitmap_mode_ == BitmapMode::always) {
      handover_->end(BitmapHandover::Outcome::rest, todo_);
      handover_.reset();
    }
    co_return;
  }

 private:
  // Throws if the settings' most_at_once is less than what is copied together.
  static std::uint64_t chunk_for(const BackupSettings& settings, std::uint64_t unit) {
    const std::uint64_t usual = chunk_size(unit);
    if (settings.most_at_once == 0) return usual;
    if (settings.most_at_once < unit) {
      throw Error(EINVAL,
                  fmt::format("Parameter 'max-chunk' expects 0 or a value from {}, which are "
                              "copied together, not {}",
                              unit, settings.most_at_once));
    }
    return std::min(usual, align_down(settings.most_at_once, unit));
  }

  // The instant that the backup shows.
  Task<void> begin(std::optional<std::string> bitmap) {
    if (bitmap) handover_ = std::make_unique<BitmapHandover>(*device_, *bitmap);
    if (sync_ == SyncMode::incremental || sync_ == SyncMode::bitmap) {
      todo_.merge(handover_->bits());
    } else if (device_->size() > 0) {
      todo_.set({GuestOffset(0), device_->size()});
    }
    set_total(std::min(todo_.dirty_bytes(), device_->size()));
    filter_->filter().before_change = [this](GuestRange range) { return save(range); };
    co_return;
  }

  // `turn`: null for guests, who are not to wait for others.
  Task<void> copy_todo(GuestRange range, Turn* turn) {
    const CopyLocks::Guard guard = co_await copies_.lock(range, CopyLocks::Kind::copy);
    // Guests' writes may have had parts of it copied already.
    const std::vector<GuestRange> parts = dirty_stretches(todo_, range);
    co_await copy_stretches(*source_, *target_, parts, options_, turn);
    for (const GuestRange& part : parts) {
      todo_.clear(part);
      add_done(part.length);
    }
    if (discards_source_) co_await discard(parts);
  }

  // Before anyone may change it. Where that fails the source keeps what it has: the copy is there.
  Task<void> discard(const std::vector<GuestRange>& parts) {
    for (const GuestRange& part : parts) {
      try {
        co_await filter_->filter().discard_below(part);
      } catch (const Error& error) {
        if (error.code() == ECANCELED) throw;
      }
    }
  }

  // What a guest is about to change is copied first. If that fails, the guest goes on, and the
  // backup is no more.
  Task<void> save(GuestRange range) {
    if (broken_) co_return;
    GuestRange whole = range.align_out(unit_);
    whole.length = std::min(whole.length, device_->size() - whole.start.bytes());
    if (!todo_.next_dirty(whole.start, whole.end().bytes())) {
      // It may be on its way this very moment.
      const CopyLocks::Guard guard = co_await copies_.lock(whole, CopyLocks::Kind::copy);
      co_return;
    }
    try {
      co_await copy_todo(whole, nullptr);
    } catch (const Error& error) {
      broken_ = error;
      wake();
    }
  }

  // sync=top: only what the image itself has. What guests write meanwhile is there as well by then,
  // and has been copied before.
  Task<void> leave_out_unallocated() {
    if (sync_ != SyncMode::top) co_return;
    const Node* const backing = backing_of(*device_);
    const std::uint64_t size = device_->size();
    for (std::uint64_t at = 0; at < size;) {
      co_await checkpoint();
      const std::uint64_t end = std::min(at + chunk_size(unit_), size);
      const GuestRange part{GuestOffset(at), end - at};
      const CopyLocks::Guard guard = co_await copies_.lock(part, CopyLocks::Kind::copy);
      co_await leave_out(part, backing);
      at = end;
    }
    set_total(done() + std::min(todo_.dirty_bytes(), size));
  }

  Task<void> leave_out(GuestRange part, const Node* backing) {
    while (!part.empty()) {
      const GuestRange rest = part;
      const BlockStatus status =
          co_await block_status(*device_, rest, MapMode::allocation_only, backing);
      const GuestRange found{part.start, std::min(status.length, part.length)};
      if (!status.allocated) todo_.clear(found);  // whole units of it
      part = {found.end(), part.length - found.length};
    }
  }

  const SyncMode sync_;
  const std::optional<BitmapMode> bitmap_mode_;
  std::shared_ptr<Node> device_;
  std::shared_ptr<Node> target_node_;
  const std::uint64_t unit_;   // bytes that are copied together
  const std::uint64_t chunk_;  // bytes that are copied at once, at most
  const bool discards_source_;
  DirtyBitmap todo_;  // what the target does not have yet
  CopyLocks copies_;
  StretchOptions options_;
  std::string user_;
  std::unique_ptr<Child> target_;
  std::unique_ptr<PlacedFilter> filter_;
  std::unique_ptr<ChainSource> source_;
  std::unique_ptr<BitmapHandover> handover_;
  std::optional<Error> broken_;  // the old content is lost in places
};

void check_nodes(const BackupSettings& settings) {
  Node& device = *settings.device;
  Node& target = *settings.target;
  if (&device == &target) throw Error(EINVAL, "Source and target cannot be the same");
  if (device.size() != target.size()) {
    throw Error(EINVAL, fmt::format("The target has {} bytes, the source {}", target.size(),
                                    device.size()));
  }
  if (settings.compress && !target.driver().limits().can_compress) {
    throw Error(ENOTSUP, "Compression is not supported for this drive " + target.name());
  }
  if (settings.discard_source && device.read_only()) {
    throw Error(EPERM, fmt::format("Node '{}' is read-only: 'discard-source' needs one that is not",
                                   device.name()));
  }
}

}  // namespace

Task<std::shared_ptr<Job>> make_backup_job(JobTable& jobs, BackupSettings settings) {
  check_nodes(settings);
  const std::optional<BitmapMode> mode = check_modes(settings);
  jobs.require_idle(*settings.device);
  jobs.require_idle(*settings.target);
  std::optional<std::string> bitmap = std::move(settings.bitmap);
  std::optional<std::string> filter_name = std::move(settings.filter_node_name);
  const auto job = std::make_shared<BackupJob>(jobs.events(), std::move(settings), mode);
  Task<void> preparation = job->prepare(std::move(bitmap), std::move(filter_name));
  co_return co_await CopyJob::prepared(job, std::move(preparation));
}

}  // namespace vise
