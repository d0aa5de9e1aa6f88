#include "job/commit.h"

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

class CommitJob final : public CopyJob {
 public:
  CommitJob(EventBus& events, CommitSettings settings)
      : CopyJob(events, qapi::JobType::commit, settings.job),
        top_(settings.top->shared_from_this()),
        base_(settings.base->shared_from_this()),
        backing_file_(std::move(settings.backing_file)),
        backing_format_(settings.backing_format) {
    for (Node* node = top_.get(); node != nullptr; node = backing_of(*node)) {
      nodes_.push_back(node);
      nodes_.push_back(&image_of(*node));
      if (&image_of(*node) == &image_of(*base_)) break;
    }
    set_total(top_->size());
  }

  Task<void> prepare(std::optional<std::string> filter_name, const JobTable& jobs) {
    for (const Node* node : nodes_) jobs.require_idle(*node);
    if (has_overlay() && !backing_file_) static_cast<void>(name_to_store(image_of(*base_), *top_));
    const std::string user = fmt::format("commit job '{}'", id());
    if (base_->read_only()) {
      co_await base_->graph().reopen(*base_, false);
      was_read_only_ = true;
    }
    std::unique_ptr<ChainSource> source =
        co_await ChainSource::open(*top_, base_.get(), user, ChainSource::Sharing::all);
    source_ = std::move(source);
    const Permissions writes{
        PermissionSet(Permission::consistent_read) | Permission::write | Permission::resize,
        Permissions::all()};
    std::unique_ptr<Child> target =
        co_await base_->graph().attach(nullptr, user, EdgeRole::root, base_, writes);
    target_ = std::move(target);
    if (target_->size() < top_->size()) co_await target_->truncate(top_->size());
    std::unique_ptr<PlacedFilter> filter = co_await PlacedFilter::place(
        *top_, commit_filter_type, std::move(filter_name), JobFilter::Sharing::all);
    filter_ = std::move(filter);
    options_.encoded = target_->limits().can_compress && base_->type().name == "compress";
  }

  std::vector<Node*> nodes() const override { return nodes_; }

  Task<void> clean() override {
    CleanUp steps;
    if (target_) co_await steps.step(target_->detach());
    if (source_) co_await steps.step(source_->close());
    if (filter_) co_await steps.step(filter_->remove_onto(switches_ ? *base_ : *top_));
    if (was_read_only_) co_await steps.step(base_->graph().reopen(*base_, true));
    nodes_.clear();
    filter_.reset();
    Graph& graph = top_->graph();
    co_await graph.release(std::move(top_));
    co_await graph.release(std::move(base_));
    steps.finish();
  }

 protected:
  Task<void> run() override {
    co_await copy_all();
    set_done(total());
    co_await target_->flush();
  }

  Task<std::optional<GuestRange>> next(GuestOffset from) override {
    const std::uint64_t size = source_->size();
    while (from.bytes() < size) {
      const std::optional<GuestOffset> behind = end_of_done(from);
      if (behind) {
        from = *behind;
        continue;
      }
      const GuestRange rest{from, std::min<std::uint64_t>(size - from.bytes(), 1u << 30)};
      const ChainSource::Stretch stretch = co_await source_->status(rest);
      if (stretch.kind != ChainSource::Kind::absent) {
        const std::uint64_t most = chunk_size(target_->limits().cluster_size);
        co_return GuestRange{from, std::min(stretch.length, most - from.bytes() % most)};
      }
      from += stretch.length;
      set_done(std::max(done(), from.bytes()));
    }
    co_return std::nullopt;
  }

  // Nobody else changes the images that go, or the base: there is nothing to be kept apart.
  Task<void> copy(GuestRange range, Turn& turn) override {
    std::vector<GuestRange> whole(1, range);
    co_await copy_stretches(*source_, *target_, std::move(whole), options_, &turn);
    if (!copied_.empty() && copied_.back().end() == range.start) {
      copied_.back().length += range.length;
    } else {
      copied_.push_back(range);
    }
    set_done(std::max(done(), range.end().bytes()));
  }

  // The images above say first that the base is below them; it has all they need by now.
  Task<void> commit() override {
    const std::function<Task<void>()> work = [this] { return rename(); };
    co_await while_drained(filter_->node(), work);
    switches_ = true;
  }

 private:
  bool has_overlay() const {
    return std::ranges::any_of(top_->parents(),
                               [](const Child* edge) { return edge->role() == EdgeRole::backing; });
  }

  // After an error it starts anew, and need not copy again what is done.
  std::optional<GuestOffset> end_of_done(GuestOffset offset) const {
    for (const GuestRange& range : copied_) {
      if (range.contains(offset)) return range.end();
    }
    return std::nullopt;
  }

  Task<void> rename() {
    const Node& base = image_of(*base_);
    for (const Child* edge : filter_->node().parents()) {
      if (edge->role() != EdgeRole::backing) continue;
      Node& overlay = *edge->parent();
      auto* image = dynamic_cast<HasBackingFile*>(&overlay.driver());
      if (image == nullptr) {
        throw Error(ENOTSUP,
                    fmt::format("Images of format '{}' name no backing file", overlay.type().name));
      }
      const std::shared_ptr<Node> held = overlay.shared_from_this();
      const bool was_read_only = overlay.read_only();
      if (was_read_only) co_await overlay.graph().reopen(overlay, false);
      std::string name = backing_file_ ? *backing_file_ : name_to_store(base, overlay);
      std::string format = format_to_store(base, backing_format_);
      co_await image->change_backing_file(std::move(name), std::move(format));
      if (was_read_only) co_await held->graph().reopen(*held, true);
    }
  }

  std::shared_ptr<Node> top_;
  std::shared_ptr<Node> base_;
  std::optional<std::string> backing_file_;
  const StoredFormat backing_format_;
  std::vector<Node*> nodes_;
  std::vector<GuestRange> copied_;
  bool was_read_only_ = false;
  bool switches_ = false;  // what was above the top is above the base
  StretchOptions options_;
  std::unique_ptr<ChainSource> source_;
  std::unique_ptr<Child> target_;
  std::unique_ptr<PlacedFilter> filter_;
};

}  // namespace

Task<std::shared_ptr<Job>> make_commit_job(JobTable& jobs, CommitSettings settings) {
  std::optional<std::string> filter_name = std::move(settings.filter_node_name);
  const auto job = std::make_shared<CommitJob>(jobs.events(), std::move(settings));
  Task<void> preparation = job->prepare(std::move(filter_name), jobs);
  co_return co_await CopyJob::prepared(job, std::move(preparation));
}

}  // namespace vise
