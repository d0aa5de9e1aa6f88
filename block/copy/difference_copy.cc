#include "copy/difference_copy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <utility>
#include <vector>

#include "copy/plan.h"
#include "copy/slot_holder.h"
#include "copy/source.h"
#include "copy/turns.h"
#include "vise/buffer.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

constexpr std::uint64_t step_size = 2 << 20;     // bytes; one step looks at up to two such
constexpr unsigned steps_in_flight = 4;          // each has in memory what it compares
constexpr std::uint64_t longest_look = 1 << 30;  // bytes asked for at a time

std::string reading_at(GuestOffset at) {
  return fmt::format("error while reading at byte {}", at.bytes());
}
std::string writing_at(GuestOffset at) {
  return fmt::format("error while writing at byte {}", at.bytes());
}

/// What an image shows below another: its content, and zeros behind its end.
class Below {
 public:
  explicit Below(Child* child) : child_(child) {}

  std::uint64_t size() const { return child_ != nullptr ? child_->size() : 0; }

  /// Zero, if it reads as zeros from there on, and for how long either holds.
  struct Status {
    bool zero = true;
    std::uint64_t length = 0;
    bool compressed = false;
  };
  Task<Status> status(GuestRange range) const {
    if (range.start.bytes() >= size()) co_return Status{true, range.length};
    const GuestRange inside{range.start, std::min(range.length, size() - range.start.bytes())};
    const BlockStatus found = co_await block_status(child_->node(), inside);
    co_return Status{found.zero, std::min(found.length, inside.length), found.compressed};
  }

  Task<void> read(GuestOffset offset, std::span<std::byte> data) const {
    const std::uint64_t there = offset.bytes() < size() ? size() - offset.bytes() : 0;
    const std::size_t length = std::min<std::uint64_t>(there, data.size());
    if (length > 0) {
      std::string context = reading_at(offset);
      co_await child_->read(offset, IoVec(data.first(length))).context(std::move(context));
    }
    std::ranges::fill(data.subspan(length), std::byte{0});
  }

 private:
  Child* child_;
};

// Stored lengths are upper bounds, so the shorter one has a whole stream: where the longer one
// begins with it, both decode to the same.
bool same_stream(std::span<const std::byte> a, std::span<const std::byte> b) {
  const std::size_t length = std::min(a.size(), b.size());
  return std::ranges::equal(a.first(length), b.first(length));
}

/// What one step takes over. Memory of the parts is in the list, whose elements do not move.
struct Step {
  struct Encoded {
    GuestRange range;
    std::span<const EncodedExtent> extents;
  };
  struct Data {
    GuestRange range;
    std::span<const std::byte> bytes;
    bool zero;
  };
  std::list<EncodedRun> runs;
  std::list<Buffer> buffers;
  std::vector<Encoded> encoded;
  std::vector<Data> data;
};

class DifferenceCopier {
 public:
  explicit DifferenceCopier(DifferenceRequest request);
  Task<void> run();

 private:
  // What is to be compared, or taken over in any case: then without decoding what can be had as it
  // is stored.
  struct Plan {
    GuestRange range;
    bool as_stored = false;
  };
  Task<Plan> next_plan(std::uint64_t from);
  Task<void> walk();
  Task<void> process(std::vector<Plan> plans, std::uint64_t number);

  Task<void> fetch_stored(GuestRange range, Step& step);
  Task<std::uint64_t> fetch_run(GuestRange range, Step& step);
  Task<EncodedRun> read_run(Child* from, GuestRange range, const Node* base);
  Task<void> compare(GuestRange range, Step& step);
  std::vector<Step::Data> differences(GuestRange range, std::span<const std::byte> old_data,
                                      std::span<const std::byte> new_data) const;

  void start_storing(const Step& step, TaskScope& writes);
  Task<void> store_encoded(Step::Encoded part);
  Task<void> store_data(Step::Data part);
  Task<void> store_zeroes(Step::Data part);
  Task<bool> holds(GuestRange range);
  void tell(std::uint64_t position);

  DifferenceRequest request_;
  Child& top_;
  const Below old_;
  const Below new_;
  const std::uint64_t cluster_;  // bytes, of the image
  const std::uint64_t unit_;     // bytes; the clusters of the image, but not tiny ones
  bool as_stored_ = false;
  AsyncSemaphore slots_{steps_in_flight};
  TaskScope steps_;
  Turns turns_;
  CopyProgress progress_;
};

DifferenceCopier::DifferenceCopier(DifferenceRequest request)
    : request_(std::move(request)),
      top_(*request_.top),
      old_(request_.old_backing),
      new_(request_.new_backing),
      cluster_(std::max<std::uint64_t>(top_.limits().cluster_size, 1)),
      unit_(std::max<std::uint64_t>(cluster_, 65536)) {
  progress_.total = top_.size();
  if (request_.old_backing != nullptr && request_.compressed && request_.encoded &&
      request_.level == 0) {
    const Limits limits = request_.old_backing->limits();
    as_stored_ = limits.cluster_size == cluster_ && limits.codec == top_.limits().codec;
  }
}

Task<void> DifferenceCopier::run() {
  std::exception_ptr failure;
  try {
    co_await walk();
  } catch (...) {
    failure = std::current_exception();
    turns_.stop();
  }
  co_await steps_.join();  // the error of a step is the earlier one
  if (failure) std::rethrow_exception(failure);
  tell(top_.size());
}

Task<void> DifferenceCopier::walk() {
  std::uint64_t number = 0;
  for (std::uint64_t position = 0; !turns_.stopped();) {
    // Compressed clusters are told one by one, and what lies between holes is stored together.
    std::vector<Plan> plans;
    for (std::uint64_t length = 0; length < step_size;) {
      const Plan next = co_await next_plan(position);
      if (next.range.empty()) break;
      position = next.range.end().bytes();
      length += next.range.length;
      if (!plans.empty() && plans.back().range.end() == next.range.start &&
          plans.back().as_stored == next.as_stored) {
        plans.back().range.length += next.range.length;
      } else {
        plans.push_back(next);
      }
    }
    if (plans.empty()) break;
    co_await slots_.acquire();
    if (turns_.stopped()) {
      slots_.release();
      break;
    }
    steps_.spawn(process(std::move(plans), number++));
  }
}

// The next stretch that has to be looked at, at most a step; empty at the end of the disk.
Task<DifferenceCopier::Plan> DifferenceCopier::next_plan(std::uint64_t from) {
  const std::uint64_t size = top_.size();
  const Node* const old_node =
      request_.old_backing != nullptr ? &request_.old_backing->node() : nullptr;
  while (from < size) {
    if (request_.control != nullptr) co_await request_.control->checkpoint();
    GuestRange range{GuestOffset(from), std::min(longest_look, size - from)};
    const BlockStatus own =
        co_await block_status(top_.node(), range, MapMode::allocation_only, old_node);
    range.length = std::min(range.length, own.length);
    if (own.allocated) {
      from += range.length;
      continue;
    }
    bool above_new = false;  // held by the images between this one and the new backing file
    if (request_.shared != nullptr && from < old_.size()) {
      // What the images above the new backing file do not hold, it holds itself.
      range.length = std::min(range.length, old_.size() - from);
      const BlockStatus above = co_await block_status(request_.old_backing->node(), range,
                                                      MapMode::allocation_only, request_.shared);
      range.length = std::min(range.length, above.length);
      // Past the end of a short one among them zeros are seen, whatever the new backing file has.
      above_new = above.allocated || above.zero;
      if (!above_new && from < request_.shared->size()) {
        from += std::min(range.length, request_.shared->size() - from);
        continue;
      }
    }
    const Below::Status old_status = co_await old_.status(range);
    const Below::Status new_status = co_await new_.status(range);
    // Compressed clusters follow each other one by one; what is above the new backing file, or
    // where that reads as zeros, need not be compared with it.
    const bool as_stored = as_stored_ && old_status.compressed && from % cluster_ == 0 &&
                           (above_new || new_status.zero);
    if (!as_stored) range.length = std::min(range.length, old_status.length);
    if (!as_stored || !above_new) range.length = std::min(range.length, new_status.length);
    if (!old_status.zero || !new_status.zero) {
      // Ends on the grid, so that clusters are taken over as wholes.
      const std::uint64_t end = align_down(from + step_size, unit_);
      if (end > from) range.length = std::min(range.length, end - from);
      co_return Plan{range, as_stored};
    }
    from += range.length;
    tell(from);
  }
  co_return Plan{{GuestOffset(size), 0}};
}

Task<void> DifferenceCopier::process(std::vector<Plan> plans, std::uint64_t number) {
  const SlotHolder slot(slots_);
  try {
    Step step;
    for (const Plan& plan : plans) {
      if (plan.as_stored) {
        co_await fetch_stored(plan.range, step);
      } else {
        co_await compare(plan.range, step);
      }
    }
    co_await turns_.wait_for(number);
    if (turns_.stopped()) co_return;
    TaskScope writes;
    start_storing(step, writes);
    turns_.pass();
    co_await writes.join();
  } catch (...) {
    turns_.stop();
    throw;
  }
  tell(plans.back().range.end().bytes());
}

// --- finding what is to be taken over
// -------------------------------------------------------------

// What is not compressed, or not by the image's codec and in its cluster size, is compared as
// usual.
Task<void> DifferenceCopier::fetch_stored(GuestRange range, Step& step) {
  std::vector<GuestRange> others;
  while (!range.empty()) {
    std::uint64_t done = co_await fetch_run(range, step);
    if (done == 0) {
      done = std::min(unit_ - range.start.bytes() % unit_, range.length);
      if (!others.empty() && others.back().end() == range.start) {
        others.back().length += done;
      } else {
        others.push_back({range.start, done});
      }
    }
    range = {range.start + done, range.length - done};
  }
  for (const GuestRange& other : others) co_await compare(other, step);
}

// Takes the first clusters of `range` that the old backing image has stored next to each other;
// returns how many bytes that are. Clusters that the new backing image has stored in the same way
// are left to it.
Task<std::uint64_t> DifferenceCopier::fetch_run(GuestRange range, Step& step) {
  if (!range.start.is_aligned(cluster_)) co_return 0;
  EncodedRun run = co_await read_run(request_.old_backing, range, request_.shared);
  if (run.extents.empty()) co_return 0;
  const EncodedRun held = co_await read_run(request_.new_backing, range, nullptr);
  step.runs.push_back(std::move(run));
  const std::span<const EncodedExtent> extents(step.runs.back().extents);
  const auto is_held = [&](std::size_t i) {
    return i < held.extents.size() && same_stream(extents[i].data, held.extents[i].data);
  };
  const std::uint64_t length = std::min(extents.size() * cluster_, range.length);
  for (std::size_t i = 0; i < extents.size();) {
    std::size_t end = i + 1;
    while (end < extents.size() && is_held(end) == is_held(i)) ++end;
    if (!is_held(i)) {
      const std::uint64_t from = i * cluster_;
      const GuestRange part{range.start + from, std::min(end * cluster_, length) - from};
      step.encoded.push_back({part, extents.subspan(i, end - i)});
    }
    i = end;
  }
  progress_.data_moved += length;
  co_return length;
}

Task<EncodedRun> DifferenceCopier::read_run(Child* from, GuestRange range, const Node* base) {
  if (from == nullptr || range.start.bytes() >= from->size()) co_return EncodedRun();
  std::string context = reading_at(range.start);
  EncodedRun run = co_await read_encoded_in_chain(*from, range, cluster_, top_.size(), base)
                       .context(std::move(context));
  const Codec codec = top_.limits().codec;
  const auto unfit = std::find_if(run.extents.begin(), run.extents.end(), [&](const auto& extent) {
    return extent.codec != codec || extent.guest_length != cluster_;
  });
  run.extents.erase(unfit, run.extents.end());
  co_return run;
}

Task<void> DifferenceCopier::compare(GuestRange range, Step& step) {
  Buffer old_data(range.length);
  Buffer new_data(range.length);
  TaskScope reads;
  reads.spawn(old_.read(range.start, old_data.span()));
  reads.spawn(new_.read(range.start, new_data.span()));
  co_await reads.join();
  std::vector<Step::Data> found;
  const std::function<void()> find = [&] {
    found = differences(range, old_data.span(), new_data.span());
  };
  co_await top_.node().graph().context().workers().run(find);
  step.data.insert(step.data.end(), found.begin(), found.end());
  progress_.data_moved += range.length;
  if (!found.empty()) step.buffers.push_back(std::move(old_data));
}

// Runs of units that differ; units lie on the grid of the disk. What lies behind the end of the old
// backing image is told apart: there a compressed write would store none of the zeros, which show
// as long as that image is below, but no longer.
std::vector<Step::Data> DifferenceCopier::differences(GuestRange range,
                                                      std::span<const std::byte> old_data,
                                                      std::span<const std::byte> new_data) const {
  std::vector<Step::Data> found;
  const auto next_unit = [&](std::uint64_t at) {
    return std::min(range.length, at + unit_ - (range.start.bytes() + at) % unit_);
  };
  const auto differs = [&](std::uint64_t from, std::uint64_t to) {
    return std::memcmp(old_data.data() + from, new_data.data() + from, to - from) != 0;
  };
  for (std::uint64_t at = 0; at < range.length;) {
    std::uint64_t end = at;
    while (end < range.length && differs(end, next_unit(end))) end = next_unit(end);
    if (end == at) {
      at = next_unit(at);
      continue;
    }
    const std::uint64_t border = align_up(old_.size(), cluster_);
    const std::uint64_t start = range.start.bytes() + at;
    if (start < border) end = std::min(end, at + (border - start));
    const std::span<const std::byte> bytes = old_data.subspan(at, end - at);
    found.push_back({{range.start + at, end - at}, bytes, is_zero(bytes)});
    at = end;
  }
  return found;
}

// --- storing it
// -----------------------------------------------------------------------------------

// What is moved as it is stored goes first, so that it is packed side by side.
void DifferenceCopier::start_storing(const Step& step, TaskScope& writes) {
  for (const Step::Encoded& part : step.encoded) writes.spawn(store_encoded(part));
  for (const Step::Data& part : step.data) {
    writes.spawn(part.zero ? store_zeroes(part) : store_data(part));
  }
}

Task<void> DifferenceCopier::store_encoded(Step::Encoded part) {
  std::string context = writing_at(part.range.start);
  const bool taken = co_await top_.write_encoded(part.range.start, part.extents, WriteFlags{})
                         .context(std::move(context));
  if (taken) co_return;
  Buffer buffer(part.range.length);
  co_await old_.read(part.range.start, buffer.span());
  co_await store_data({part.range, buffer.span(), false});
}

Task<void> DifferenceCopier::store_data(Step::Data part) {
  WriteFlags flags;
  const std::uint64_t end = part.range.end().bytes();
  const bool ends_well = end % cluster_ == 0 || end == top_.size();
  // Parts of clusters, beside subclusters the image has already, are written as they are.
  flags.compressed = request_.compressed && part.range.start.is_aligned(cluster_) && ends_well;
  flags.level = request_.level;
  std::string context = writing_at(part.range.start);
  co_await top_.write(part.range.start, ConstIoVec(part.bytes), flags).context(std::move(context));
}

Task<void> DifferenceCopier::store_zeroes(Step::Data part) {
  const ZeroFlags flags{.may_unmap = true};
  std::string context = writing_at(part.range.start);
  co_await top_.write_zeroes(part.range, flags).context(context);
  // Version 2 of qcow2 has no zero clusters: without a backing image it just forgets them.
  const bool kept = co_await holds(part.range);
  if (kept) co_return;
  co_await top_.write(part.range.start, ConstIoVec(part.bytes)).context(std::move(context));
}

// Whether nothing of the range comes from a backing image.
Task<bool> DifferenceCopier::holds(GuestRange range) {
  const Node* const below =
      request_.old_backing != nullptr ? &request_.old_backing->node() : nullptr;
  while (!range.empty()) {
    const BlockStatus own =
        co_await block_status(top_.node(), range, MapMode::allocation_only, below);
    if (!own.allocated) co_return false;
    range = {range.start + own.length, range.length - own.length};
  }
  co_return true;
}

void DifferenceCopier::tell(std::uint64_t position) {
  progress_.done = std::max(progress_.done, position);
  if (request_.on_progress) request_.on_progress(progress_);
}

}  // namespace

Task<void> copy_differences(DifferenceRequest request) {
  DifferenceCopier copier(std::move(request));
  co_await copier.run();
}

}  // namespace vise
