#include "job/stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "copy/chain_source.h"
#include "graph/chain.h"
#include "graph/drained.h"
#include "job/copy_job.h"
#include "job/job_filter.h"
#include "util/clean_up.h"
#include "vise/error.h"
#include "vise/image_operations.h"

namespace vise {

namespace {

constexpr std::uint64_t most_looked_at = std::uint64_t{1} << 30;  // bytes

// Whether writes to `device` are meant to be compressed: a compress filter is part of it, or stands
// above it.
bool is_compressing(const Node& device) {
  for (const Node* node = &device; node != nullptr;) {
    if (node->type().name == "compress") return true;
    const Child* below = node->filtered_child();
    node = below != nullptr ? &below->node() : nullptr;
  }
  return std::ranges::any_of(device.parents(), [](const Child* edge) {
    return edge->role() == EdgeRole::filtered && edge->parent() != nullptr &&
           edge->parent()->type().name == "compress";
  });
}

class StreamJob final : public CopyJob {
 public:
  StreamJob(EventBus& events, StreamSettings settings)
      : CopyJob(events, qapi::JobType::stream, std::move(settings.job)),
        device_(settings.device->shared_from_this()),
        overlay_(image_of(*settings.device).shared_from_this()),
        base_(settings.base != nullptr ? settings.base->shared_from_this() : nullptr),
        backing_file_(std::move(settings.backing_file)),
        backing_format_(settings.backing_format) {
    for (Node* node = device_.get(); node != overlay_.get();
         node = &node->filtered_child()->node()) {
      nodes_.push_back(node);
    }
    nodes_.push_back(overlay_.get());
  }

  Task<void> prepare(std::optional<std::string> filter_name, const JobTable& jobs) {
    for (const Node* node : nodes_) jobs.require_idle(*node);
    set_total(overlay_->size());
    Node* const below = backing_of(*overlay_);
    const bool nothing_between =
        below == nullptr || (base_ != nullptr && &image_of(*below) == &image_of(*base_));
    if (nothing_between) {
      set_total(0);
      co_return;
    }
    if (dynamic_cast<HasBackingFile*>(&overlay_->driver()) == nullptr) {
      throw Error(ENOTSUP, fmt::format("Images of format '{}' cannot be streamed into",
                                       overlay_->type().name));
    }
    if (base_ != nullptr && !backing_file_)
      static_cast<void>(name_to_store(image_of(*base_), *overlay_));
    options_.unchanged = true;
    options_.compressed = is_compressing(*device_) && device_->driver().limits().can_compress;
    options_.encoded = options_.compressed;
    if (base_ == nullptr) options_.zeroes = StretchOptions::Zeroes::skipped;
    if (overlay_->read_only()) {
      co_await overlay_->graph().reopen(*overlay_, false);
      was_read_only_ = true;
    }
    std::string user = fmt::format("stream job '{}'", id());
    std::unique_ptr<ChainSource> source =
        co_await ChainSource::open(*below, base_.get(), user, ChainSource::Sharing::none);
    source_ = std::move(source);
    for (Node* node : source_->nodes()) nodes_.push_back(node);
    std::unique_ptr<PlacedFilter> filter =
        co_await PlacedFilter::place(*device_, stream_filter_type, std::move(filter_name));
    filter_ = std::move(filter);
    const Permissions wanted{
        PermissionSet(Permission::consistent_read) | Permission::write_unchanged,
        Permissions::all().without(Permission::resize)};
    std::unique_ptr<Child> target =
        co_await device_->graph().attach(nullptr, std::move(user), EdgeRole::root, device_, wanted);
    target_ = std::move(target);
    cluster_size_ = std::max<std::uint64_t>(target_->limits().cluster_size, 4096);
  }

  std::vector<Node*> nodes() const override { return nodes_; }

  Task<void> clean() override {
    CleanUp steps;
    if (target_) co_await steps.step(target_->detach());
    if (filter_) co_await steps.step(filter_->remove());
    if (source_) co_await steps.step(source_->close());
    if (was_read_only_) co_await steps.step(overlay_->graph().reopen(*overlay_, true));
    nodes_.clear();
    filter_.reset();
    base_.reset();
    std::shared_ptr<Node> overlay = std::move(overlay_);
    Graph& graph = device_->graph();
    co_await graph.release(std::move(device_));
    co_await graph.release(std::move(overlay));
    steps.finish();
  }

 protected:
  Task<void> run() override {
    if (total() == 0) co_return;
    co_await copy_all();
    set_done(total());
    if (failed_) throw *failed_;
    co_await target_->flush();
  }

  Task<std::optional<GuestRange>> next(GuestOffset from) override {
    const std::uint64_t size = overlay_->size();
    while (from.bytes() < size) {
      const GuestRange rest{from, std::min(size - from.bytes(), most_looked_at)};
      const BlockStatus status =
          co_await block_status(*device_, rest, MapMode::allocation_only, base_.get());
      if (const std::optional<GuestOffset> end = end_given_up(from)) {
        from = *end;
        continue;
      }
      if (is_wanted(status, from)) {
        const std::uint64_t chunk = chunk_size(cluster_size_);
        const std::uint64_t start = from.bytes() - from.bytes() % cluster_size_;
        const std::uint64_t end = std::min(start - start % chunk + chunk, size);
        co_return GuestRange{GuestOffset(start), end - start};
      }
      from += status.length;
      set_done(std::max(done(), from.bytes()));
    }
    co_return std::nullopt;
  }

  // Parts may have been written since it was found: they are newer.
  Task<void> copy(GuestRange range, Turn& turn) override {
    const CopyLocks::Guard guard =
        co_await filter_->filter().locks().lock(range, CopyLocks::Kind::copy);
    const Node* const backing = backing_of(*overlay_);
    std::vector<GuestRange> parts;
    GuestRange rest = range;
    while (!rest.empty()) {
      const BlockStatus status =
          co_await block_status(*device_, rest, MapMode::allocation_only, backing);
      const GuestRange part{rest.start, std::min(status.length, rest.length)};
      if (!status.allocated) parts.push_back(part);
      rest = {part.end(), rest.length - part.length};
    }
    co_await copy_stretches(*source_, *target_, std::move(parts), options_, &turn);
    set_done(std::max(done(), range.end().bytes()));
  }

  void ignored(GuestRange range) override {
    given_up_.push_back(range);
    if (!failed_) failed_ = Error::system_error(EIO);
  }

  // The header first: were it to fail afterwards, the old chain would have been right.
  Task<void> commit() override {
    if (source_ == nullptr) co_return;
    const std::function<Task<void>()> work = [this] { return switch_backing(); };
    co_await while_drained(*overlay_, work);
  }

 private:
  // Is it in the images between the overlay and the base?
  bool is_wanted(const BlockStatus& status, GuestOffset from) const {
    if (status.allocated) return status.depth > 0 && !(status.zero && base_ == nullptr);
    // Past the end of a short image in between, the base would show.
    return status.zero && base_ != nullptr && from.bytes() < base_->size();
  }

  // Where what is given up around `offset` ends.
  std::optional<GuestOffset> end_given_up(GuestOffset offset) const {
    for (const GuestRange& range : given_up_) {
      if (range.contains(offset)) return range.end();
    }
    return std::nullopt;
  }

  Task<void> switch_backing() {
    auto& image = dynamic_cast<HasBackingFile&>(overlay_->driver());
    std::string name;
    std::string format;
    if (base_ != nullptr) {
      const Node& base = image_of(*base_);
      name = backing_file_ ? *backing_file_ : name_to_store(base, *overlay_);
      format = format_to_store(base, backing_format_);
    }
    co_await image.change_backing_file(std::move(name), std::move(format));
    std::unique_ptr<Child> edge;
    if (base_ != nullptr) {
      const Permissions wanted{Permission::consistent_read, Permissions::all()};
      std::unique_ptr<Child> made = co_await overlay_->graph().attach(
          overlay_.get(), std::string("backing"), EdgeRole::backing, base_, wanted);
      edge = std::move(made);
    }
    std::unique_ptr<Child> old = image.exchange_backing(std::move(edge));
    if (old) co_await old->detach();
  }

  std::shared_ptr<Node> device_;
  std::shared_ptr<Node> overlay_;
  std::shared_ptr<Node> base_;  // null: none
  std::optional<std::string> backing_file_;
  const StoredFormat backing_format_;
  std::vector<Node*> nodes_;
  bool was_read_only_ = false;
  std::unique_ptr<ChainSource> source_;  // null: there is nothing to do
  std::unique_ptr<PlacedFilter> filter_;
  std::unique_ptr<Child> target_;
  StretchOptions options_;
  std::uint64_t cluster_size_ = 0;
  std::vector<GuestRange> given_up_;
  std::optional<Error> failed_;  // what was ignored makes the job fail in the end
};

}  // namespace

Task<std::shared_ptr<Job>> make_stream_job(JobTable& jobs, StreamSettings settings) {
  std::optional<std::string> filter_name = std::move(settings.filter_node_name);
  const auto job = std::make_shared<StreamJob>(jobs.events(), std::move(settings));
  Task<void> preparation = job->prepare(std::move(filter_name), jobs);
  co_return co_await CopyJob::prepared(job, std::move(preparation));
}

}  // namespace vise
