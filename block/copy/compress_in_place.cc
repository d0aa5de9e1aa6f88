#include "copy/compress_in_place.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>
#include <vector>

#include "codec/codec.h"
#include "copy/slot_holder.h"
#include "graph/drained.h"
#include "graph/exclusive.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/in_place.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

constexpr std::uint64_t usual_chunk = std::uint64_t{1} << 20;
constexpr std::uint64_t memory_limit = std::uint64_t{32} << 20;  // of all chunks together
// Each round of moves ends when the one before has not helped; this bounds them while others write.
constexpr int most_rounds = 8;
// Where nothing works any more, going on behind the bad place is of no use.
constexpr unsigned most_failures_in_a_row = 64;
// Errors that trying again does not mend.
constexpr int lasting[] = {ECANCELED, EINVAL, ENOTSUP, EROFS, ENOMEDIUM};

class InPlaceCompressor {
 public:
  InPlaceCompressor(InPlaceRequest request, CompressibleInPlace& driver)
      : request_(std::move(request)),
        image_(*request_.image),
        driver_(driver),
        chunk_size_(std::max(usual_chunk, image_.limits().cluster_size)),
        // Data, and as much again for what it is compressed to.
        slots_(std::clamp<std::uint64_t>(memory_limit / (2 * chunk_size_), 1,
                                         std::max(1u, request_.options.chunks_in_flight))) {}

  Task<void> run();
  const InPlaceProgress& progress() const { return progress_; }

 private:
  enum class Step { compress, move };
  using DriverStep = std::function<Task<void>()>;

  Task<void> begin();
  Task<void> drained(const DriverStep& step);
  Task<void> whole(const DriverStep& step);
  Task<bool> attempt(const DriverStep& step, InPlaceStep what);
  Task<void> compress_disk();
  Task<void> move_once();
  Task<void> walk_snapshots(Step kind);
  Task<void> snapshots_step(Step kind, CompressibleInPlace::SnapshotStep& step);
  Task<void> plan_moves(bool& more);
  Task<void> walk(Step step, GuestOffset end);
  Task<void> spawn_chunks(Step step, GuestOffset end);
  Task<GuestRange> next_chunk(Step step, GuestRange rest);
  Task<void> process(Step step, GuestRange range);
  Task<void> work_on(Step step, GuestRange range);
  void report(double fraction);
  Task<void> checkpoint() {
    if (request_.control != nullptr) co_await request_.control->checkpoint();
  }

  InPlaceRequest request_;
  Child& image_;
  CompressibleInPlace& driver_;
  std::uint64_t chunk_size_;
  AsyncSemaphore slots_;
  TaskScope chunks_;
  InPlaceProgress progress_;
  bool stopped_ = false;
  std::vector<GuestRange> left_out_;  // by the walk
  std::uint64_t unmoved_ = 0;  // bytes, about, of what snapshots hold, left out in this round
  unsigned failures_in_a_row_ = 0;
  // The part of the bar that a walk fills.
  double bar_start_ = 0;
  double bar_length_ = 1;
};

Task<void> InPlaceCompressor::run() {
  const double compressing = request_.options.compact ? 0.8 : 1.0;
  bar_length_ = compressing * 0.7;
  const DriverStep begin = [this] { return this->begin(); };
  co_await whole(begin);
  co_await compress_disk();
  bar_start_ = bar_length_;
  bar_length_ = compressing - bar_start_;
  co_await walk_snapshots(Step::compress);
  for (int round = 0; request_.options.compact && round < most_rounds; ++round) {
    co_await checkpoint();
    bool more = false;
    const DriverStep plan = [this, &more] { return plan_moves(more); };
    co_await whole(plan);
    if (!more) break;
    bar_start_ += bar_length_;
    bar_length_ = (1 - bar_start_) / 4;
    co_await move_once();
  }
  co_await checkpoint();
  const DriverStep release = [this] { return driver_.release_free_space(); };
  co_await whole(release);
  for (const GuestRange& range : left_out_) progress_.left_out += range.length;
  progress_.left_out += unmoved_;
  const DriverStep flush = [this] { return image_.flush(); };
  co_await whole(flush);
}

// What takes its time, flushing and checking, is not drained.
Task<void> InPlaceCompressor::begin() {
  co_await image_.flush();
  const DriverStep begin = [this] { return driver_.begin_compressing(); };
  co_await drained(begin);
  co_await driver_.check_metadata();
  const DriverStep end_check = [this] { return driver_.end_check(); };
  co_await drained(end_check);
}

Task<void> InPlaceCompressor::compress_disk() {
  co_await walk(Step::compress, GuestOffset(image_.size()));
  for (const GuestRange& range : std::exchange(left_out_, {})) {
    co_await checkpoint();
    co_await slots_.acquire();
    co_await process(Step::compress, range);
  }
  for (const GuestRange& range : std::exchange(left_out_, {})) progress_.left_out += range.length;
}

Task<void> InPlaceCompressor::plan_moves(bool& more) { more = co_await driver_.plan_moves(); }

// What is left out this time may be part of the next plan.
Task<void> InPlaceCompressor::move_once() {
  left_out_.clear();
  unmoved_ = 0;
  co_await walk(Step::move, driver_.end_of_moves());
  bar_start_ += bar_length_;
  co_await walk_snapshots(Step::move);
  const DriverStep move_tables = [this] { return driver_.move_tables(); };
  const DriverStep move_drained = [&] { return drained(move_tables); };
  co_await whole(move_drained);
  const DriverStep release = [this] { return driver_.release_free_space(); };
  co_await whole(release);
}

// What snapshots hold nobody writes to, but the disk shares it, and entries of both change at once.
Task<void> InPlaceCompressor::walk_snapshots(Step kind) {
  CompressibleInPlace::SnapshotStep step;
  do {
    co_await checkpoint();
    const std::uint64_t before = step.next;
    const DriverStep work = [this, kind, &step, before] {
      step.next = before;
      return snapshots_step(kind, step);
    };
    const DriverStep work_drained = [&] { return drained(work); };
    const bool done = co_await attempt(work_drained, InPlaceStep::of_a_place);
    const bool moves = kind == Step::move;
    if (!done) {
      (moves ? unmoved_ : progress_.left_out) += std::max(step.read, image_.limits().cluster_size);
    }
    (moves ? progress_.moved : progress_.compressed) += step.done;
    if (step.end > 0) report(static_cast<double>(step.next) / static_cast<double>(step.end));
    if (request_.control != nullptr) co_await request_.control->pace(step.read, request_.clock);
  } while (step.next < step.end);
}

Task<void> InPlaceCompressor::snapshots_step(Step kind, CompressibleInPlace::SnapshotStep& step) {
  if (kind == Step::move) {
    co_await driver_.move_snapshots(step);
  } else {
    co_await driver_.compress_snapshots(step, request_.options.level);
  }
}

Task<void> InPlaceCompressor::whole(const DriverStep& step) {
  co_await attempt(step, InPlaceStep::of_the_whole);
}

// A step, as often as the client wishes. False: it is left out.
Task<bool> InPlaceCompressor::attempt(const DriverStep& step, InPlaceStep what) {
  for (;;) {
    std::exception_ptr failure;
    std::optional<Error> error;
    try {
      co_await step();
    } catch (const Error& thrown) {
      error = thrown;
      failure = std::current_exception();
    }
    if (!failure) {
      failures_in_a_row_ = 0;
      co_return true;
    }
    const bool lasts = std::ranges::find(lasting, error->code()) != std::end(lasting) ||
                       ++failures_in_a_row_ >= most_failures_in_a_row;
    if (!request_.on_error || lasts || stopped_) std::rethrow_exception(failure);
    const AfterError wish = co_await request_.on_error(*error, what);
    if (wish == AfterError::leave_out) co_return false;
  }
}

Task<void> InPlaceCompressor::drained(const DriverStep& step) {
  AsyncMutex::Guard turn;
  if (request_.turn != nullptr) {
    AsyncMutex::Guard taken = co_await request_.turn->lock();
    turn = std::move(taken);
  }
  co_await while_drained(image_.node(), step);
}

Task<void> InPlaceCompressor::walk(Step step, GuestOffset end) {
  std::exception_ptr failure;
  try {
    co_await spawn_chunks(step, end);
  } catch (...) {
    failure = std::current_exception();
    stopped_ = true;
  }
  co_await chunks_.join();  // the error of a chunk is the earlier one
  if (failure) std::rethrow_exception(failure);
}

Task<void> InPlaceCompressor::spawn_chunks(Step step, GuestOffset end) {
  GuestOffset position(0);
  while (position < end && !stopped_) {
    co_await checkpoint();
    const GuestRange chunk = co_await next_chunk(step, {position, end - position});
    report(static_cast<double>(chunk.start.bytes()) / static_cast<double>(end.bytes()));
    if (chunk.empty()) co_return;
    if (request_.control != nullptr) co_await request_.control->pace(chunk.length, request_.clock);
    co_await slots_.acquire();
    if (stopped_) {
      slots_.release();
      co_return;
    }
    chunks_.spawn(process(step, chunk));
    position = chunk.end();
  }
}

Task<GuestRange> InPlaceCompressor::next_chunk(Step step, GuestRange rest) {
  if (step == Step::move) co_return co_await driver_.find_movable(rest, chunk_size_);
  co_return co_await driver_.find_uncompressed(rest, chunk_size_);
}

Task<void> InPlaceCompressor::process(Step step, GuestRange range) {
  const SlotHolder slot(slots_);
  const std::function<Task<void>()> work = [this, step, range] { return work_on(step, range); };
  const char* const what = step == Step::move ? "moving" : "compressing";
  const DriverStep alone = [this, range, &work, what] {
    return run_exclusively(image_, range, work)
        .context(fmt::format("error while {} at byte {}", what, range.start.bytes()));
  };
  try {
    const bool done = co_await attempt(alone, InPlaceStep::of_a_place);
    if (!done) left_out_.push_back(range);
  } catch (...) {
    stopped_ = true;
    throw;
  }
}

Task<void> InPlaceCompressor::work_on(Step step, GuestRange range) {
  if (step == Step::move) {
    const std::uint64_t moved = co_await driver_.move_range(range);
    progress_.moved += moved;
    co_return;
  }
  // The disk may have become smaller since the chunk was found.
  if (range.start.bytes() >= image_.size()) co_return;
  const std::uint64_t compressed = co_await driver_.compress_range(range, request_.options.level);
  progress_.compressed += compressed;
}

void InPlaceCompressor::report(double fraction) {
  progress_.fraction = bar_start_ + bar_length_ * fraction;
  if (request_.on_progress) request_.on_progress(progress_);
}

}  // namespace

Task<InPlaceProgress> compress_in_place(InPlaceRequest request) {
  Node& node = request.image->node();
  auto* driver = dynamic_cast<CompressibleInPlace*>(&node.driver());
  if (driver == nullptr) {
    throw Error(ENOTSUP, fmt::format("Images of format '{}' cannot be compressed in place",
                                     node.type().name));
  }
  codec::check_level(request.image->limits().codec, request.options.level);
  InPlaceCompressor compressor(std::move(request), *driver);
  co_await compressor.run();
  InPlaceProgress progress = compressor.progress();
  progress.fraction = 1;
  co_return progress;
}

}  // namespace vise
