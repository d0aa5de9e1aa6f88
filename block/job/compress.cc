#include "job/compress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "codec/codec.h"
#include "graph/chain.h"
#include "util/clean_up.h"
#include "vise/error.h"
#include "vise/in_place.h"

namespace vise {

namespace {

class CompressJob final : public Job {
 public:
  CompressJob(JobTable& jobs, const CompressSettings& settings)
      : Job(jobs.events(), qapi::JobType::compress, settings.job),
        turn_(jobs.turn()),
        options_(settings.options),
        device_(settings.device->shared_from_this()),
        node_(image_of(*settings.device).shared_from_this()),
        nodes_{device_.get(), node_.get()} {
    set_total(node_->size());
  }

  Task<void> prepare(const JobTable& jobs) {
    for (const Node* node : nodes_) jobs.require_idle(*node);
    if (node_->read_only()) {
      co_await node_->graph().reopen(*node_, false);
      was_read_only_ = true;
    }
    const Permissions wanted{
        PermissionSet(Permission::consistent_read) | Permission::write_unchanged,
        Permissions::all().without(Permission::resize)};
    std::string user = fmt::format("compress job '{}'", id());
    std::unique_ptr<Child> image =
        co_await node_->graph().attach(nullptr, std::move(user), EdgeRole::root, node_, wanted);
    image_ = std::move(image);
  }

  std::vector<Node*> nodes() const override { return nodes_; }

  Task<void> clean() override {
    CleanUp steps;
    if (image_) co_await steps.step(image_->detach());
    image_.reset();
    if (was_read_only_) co_await steps.step(node_->graph().reopen(*node_, true));
    nodes_.clear();
    Graph& graph = node_->graph();
    co_await graph.release(std::move(device_));
    co_await graph.release(std::move(node_));
    steps.finish();
  }

 protected:
  Task<void> run() override {
    const InPlaceProgress done = co_await compress_in_place(request());
    set_done(total());
    if (done.left_out == 0) co_return;
    throw Error(last_error_->code(), fmt::format("{} bytes were left out, the last of them for: {}",
                                                 done.left_out, last_error_->message()));
  }

 private:
  // The reins of the engine are those of the job.
  class Control final : public CopyControl {
   public:
    explicit Control(CompressJob& job) : job_(job) {}
    Task<void> checkpoint() override { return job_.checkpoint(); }
    Task<void> pace(std::uint64_t bytes, const Clock&) override {
      co_await job_.wait_for_speed(bytes);
      co_await job_.checkpoint();
    }

   private:
    CompressJob& job_;
  };

  Task<AfterError> meet(Error error, InPlaceStep step) {
    last_error_ = error;
    const CopyError failure(error, CopyError::Side::target);
    const Ignoring ignoring =
        step == InPlaceStep::of_a_place ? Ignoring::possible : Ignoring::impossible;
    const Reaction reaction = react_to(failure, ignoring);
    co_await after_errors();
    co_return reaction == Reaction::ignore ? AfterError::leave_out : AfterError::try_again;
  }

  InPlaceRequest request() {
    InPlaceRequest request;
    request.on_error = [this](const Error& error, InPlaceStep step) { return meet(error, step); };
    request.image = image_.get();
    request.options = options_;
    request.control = &control_;
    request.turn = &turn_;
    request.on_progress = [this](const InPlaceProgress& progress) {
      const double bytes = progress.fraction * static_cast<double>(total());
      set_done(std::clamp(static_cast<std::uint64_t>(bytes), done(), total()));
    };
    return request;
  }

  AsyncMutex& turn_;
  const InPlaceOptions options_;
  std::shared_ptr<Node> device_;
  std::shared_ptr<Node> node_;  // the image
  std::vector<Node*> nodes_;
  Control control_{*this};
  bool was_read_only_ = false;
  std::unique_ptr<Child> image_;
  std::optional<Error> last_error_;
};

}  // namespace

Task<std::shared_ptr<Job>> make_compress_job(JobTable& jobs, CompressSettings settings) {
  const Node& node = image_of(*settings.device);
  if (dynamic_cast<CompressibleInPlace*>(&node.driver()) == nullptr) {
    throw Error(ENOTSUP, fmt::format("Images of format '{}' cannot be compressed in place",
                                     node.type().name));
  }
  codec::check_level(node.driver().limits().codec, settings.options.level);
  const auto job = std::make_shared<CompressJob>(jobs, settings);
  Task<void> preparation = job->prepare(jobs);
  co_return co_await Job::prepared(job, std::move(preparation));
}

}  // namespace vise
