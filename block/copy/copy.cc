// The engine itself. Chunks are numbered in guest order; reading and scanning overlap freely, but a
// chunk starts its writes only when all chunks before it have started theirs.
#include "copy/copy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "copy/chunk.h"
#include "copy/copy_error.h"
#include "copy/plan.h"
#include "copy/salvage.h"
#include "copy/slot_holder.h"
#include "copy/source.h"
#include "copy/turns.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

constexpr std::uint64_t usual_chunk = std::uint64_t{2} << 20;
constexpr std::uint64_t memory_limit = std::uint64_t{32} << 20;  // of all chunks together
constexpr std::uint64_t salvage_step = 64 << 10;               // taken for data where nobody knows
constexpr std::uint64_t status_step = std::uint64_t{1} << 30;  // asked for at once

class Copier {
 public:
  explicit Copier(CopyRequest request);
  Task<void> run();

 private:
  // A piece of the walk that is dealt with as one: up to chunk_size_ with data in it, or any length
  // without.
  struct Plan {
    GuestRange range;
    std::vector<CopyPiece> pieces;
  };

  Task<void> walk();
  Task<Plan> next_chunk(GuestOffset start);
  Task<CopyPiece> status_at(std::uint64_t offset);
  Task<void> find_out_if_target_is_zero();

  Task<void> process(Plan plan, std::uint64_t number);
  Task<void> move_chunk(std::vector<CopyPiece> pieces, std::uint64_t number);
  Task<void> copy_files(Chunk& chunk, TaskScope& writes);

  static std::uint64_t granularity_of(const CopyRequest& request);

  CopyRequest request_;
  CopySource nodes_;
  std::optional<SalvagingSource> salvaging_;
  Child& target_;
  std::uint64_t total_;
  std::uint64_t granularity_;  // unit in which zeros are left out and data is rounded out
  std::uint64_t chunk_size_;
  ChunkOptions options_;
  AsyncSemaphore slots_;
  TaskScope chunks_;
  CopyPiece known_;              // the status answer the walk is in
  std::uint64_t offloaded_ = 0;  // bytes that the host has copied

  Turns turns_;
  CopyProgress progress_;

  PieceSource& source() { return salvaging_ ? static_cast<PieceSource&>(*salvaging_) : nodes_; }
};

std::uint64_t Copier::granularity_of(const CopyRequest& request) {
  const Limits limits = request.target->limits();
  std::uint64_t unit = limits.cluster_size;
  // Subclusters can be left out one by one, but are never compressed.
  if (!request.options.compressed && limits.zero_alignment > 0) {
    unit = std::min(unit, limits.zero_alignment);
  }
  unit = std::max<std::uint64_t>({unit, limits.request_alignment, limits.write_alignment});
  const std::uint64_t sparse = request.options.sparse_size;
  return sparse > unit && !request.options.compressed ? sparse / unit * unit : unit;
}

std::uint64_t chunk_size_for(std::uint64_t granularity) {
  return divide_up(usual_chunk, granularity) * granularity;
}

ChunkOptions chunk_options(const CopyOptions& options, std::uint64_t granularity) {
  ChunkOptions result;
  result.compressed = options.compressed;
  result.level = options.level;
  result.fua = options.fua;
  result.verify = options.verify;
  result.zero_unit = options.sparse_size > 0 ? granularity : 0;
  return result;
}

Copier::Copier(CopyRequest request)
    : request_(std::move(request)),
      nodes_(request_.sources, request_.base),
      target_(*request_.target),
      total_(nodes_.size()),
      granularity_(granularity_of(request_)),
      chunk_size_(chunk_size_for(granularity_)),
      options_(chunk_options(request_.options, granularity_)),
      slots_(std::clamp<std::uint64_t>(memory_limit / chunk_size_, 1,
                                       std::max(1u, request_.options.chunks_in_flight))) {
  progress_.total = total_;
  if (request_.on_unreadable) {
    salvaging_.emplace(nodes_, std::max(granularity_, salvage_step), request_.on_unreadable);
  }
  const CopyOptions& options = request_.options;
  const Limits limits = target_.limits();
  const bool wanted = options.compressed ? options.encoded && granularity_ == limits.cluster_size
                                         : options.keep_compressed;
  if (wanted && options.level == 0 && !salvaging_ && limits.can_compress &&
      chunk_size_ % limits.cluster_size == 0) {
    nodes_.offer_encoded(limits.cluster_size);
  }
  if (options.offload && !options.compressed && !salvaging_) nodes_.offer_files(granularity_);
}

Task<void> Copier::run() {
  if (target_.size() < total_) {
    throw Error(ENOSPC, fmt::format("The target has {} bytes, fewer than the {} of the source",
                                    target_.size(), total_));
  }
  co_await find_out_if_target_is_zero();
  std::exception_ptr failure;
  try {
    co_await walk();
  } catch (...) {
    failure = std::current_exception();
    turns_.stop();
  }
  co_await chunks_.join();  // the error of a chunk is the earlier one
  if (failure) std::rethrow_exception(failure);
}

// Asking once is cheaper than for each run of zeros of a new image.
Task<void> Copier::find_out_if_target_is_zero() {
  bool is_zero = request_.options.target_is_zero;
  if (!is_zero && total_ > 0) {
    const GuestRange whole{GuestOffset(0), total_};
    const BlockStatus status = co_await block_status(target_.node(), whole);
    is_zero = status.zero && status.length >= total_;
  }
  if (is_zero) options_.zeroes = ChunkOptions::Zeroes::skipped;
}

Task<void> Copier::walk() {
  std::uint64_t number = 0;
  std::uint64_t position = 0;
  while (position < total_ && !turns_.stopped()) {
    if (request_.control != nullptr) co_await request_.control->checkpoint();
    Plan plan = co_await next_chunk(GuestOffset(position));
    position += plan.range.length;
    if (request_.control != nullptr) {
      co_await request_.control->pace(data_length(plan.pieces), request_.clock);
    }
    co_await slots_.acquire();
    if (turns_.stopped()) {
      slots_.release();
      break;
    }
    Task<void> work = process(std::move(plan), number++);
    chunks_.spawn(std::move(work));
  }
}

Task<CopyPiece> Copier::status_at(std::uint64_t offset) {
  if (!known_.range.contains(GuestOffset(offset))) {
    const GuestRange range{GuestOffset(offset), std::min(total_ - offset, status_step)};
    known_ = co_await source().status(range).context(
        fmt::format("error while reading at byte {}", offset));
    if (known_.kind == CopyKind::zero && request_.options.sparse_size == 0 &&
        !request_.options.compressed) {
      known_.kind = CopyKind::data;
    }
  }
  CopyPiece rest = known_;
  const std::uint64_t passed = offset - rest.range.start.bytes();
  rest.range = {GuestOffset(offset), rest.range.length - passed};
  co_return rest;
}

Task<Copier::Plan> Copier::next_chunk(GuestOffset start) {
  const std::uint64_t from = start.bytes();
  std::uint64_t end = std::min(total_, from - from % chunk_size_ + chunk_size_);
  std::vector<CopyPiece> pieces;
  for (std::uint64_t position = from; position < end;) {
    CopyPiece piece = co_await status_at(position);
    const bool is_short_work = piece.kind != CopyKind::data && piece.kind != CopyKind::in_file;
    if (position == from && is_short_work && piece.range.length >= end - from) {
      // A long stretch without data is one chunk; the next one starts on the grid again.
      std::uint64_t long_end = piece.range.end().bytes();
      if (long_end < total_) long_end -= long_end % chunk_size_;
      piece.range.length = std::max(long_end, end) - from;
      end = from + piece.range.length;
    }
    piece.range.length = std::min(piece.range.length, end - position);
    append_piece(pieces, piece);
    position += piece.range.length;
  }
  Plan plan;
  plan.range = {start, end - from};
  plan.pieces = round_out_data(pieces, granularity_);
  co_return plan;
}

Task<void> Copier::process(Plan plan, std::uint64_t number) {
  const SlotHolder slot(slots_);
  const std::uint64_t length = plan.range.length;
  const std::uint64_t moved = data_length(plan.pieces);
  try {
    co_await move_chunk(std::move(plan.pieces), number);
  } catch (const CopyError& error) {
    turns_.stop();
    Error told = error;
    told.add_context(fmt::format("error while {} at byte {}",
                                 error.side() == CopyError::Side::source ? "reading" : "writing",
                                 error.at().bytes()));
    throw told;
  } catch (...) {
    turns_.stop();
    throw;
  }
  if (turns_.stopped()) co_return;
  progress_.done += length;
  progress_.data_moved += moved;
  if (request_.on_progress) request_.on_progress(progress_);
}

Task<void> Copier::move_chunk(std::vector<CopyPiece> pieces, std::uint64_t number) {
  Chunk chunk(source(), target_, options_, std::move(pieces));
  co_await chunk.fetch();
  co_await turns_.wait_for(number);
  if (turns_.stopped()) co_return;
  TaskScope writes;
  chunk.start_storing(writes);
  if (chunk.bytes_in_files() > 0) co_await copy_files(chunk, writes);
  turns_.pass();
  co_await writes.join();
}

// Before the next chunk has its turn: the target gives out space when a request gets there, which
// is after the source has been asked where the data lies.
Task<void> Copier::copy_files(Chunk& chunk, TaskScope& writes) {
  std::exception_ptr failure;
  try {
    const std::uint64_t copied = co_await chunk.copy_files();
    offloaded_ += copied;
    if (offloaded_ == 0) {
      // Not between these files: from now on they are read and written, several chunks at a time.
      nodes_.offer_files(0);
      known_ = CopyPiece();
    }
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    turns_.stop();
    co_await writes.join();
    std::rethrow_exception(failure);
  }
}

}  // namespace

Task<void> copy(CopyRequest request) {
  Copier copier(std::move(request));
  co_await copier.run();
}

}  // namespace vise
