// The engine itself. Chunks are numbered in guest order; reading and scanning overlap freely, but a
// chunk starts its writes only when all chunks before it have started theirs.
#include "copy/copy.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <optional>
#include <utility>

#include "codec/codec.h"
#include "copy/plan.h"
#include "copy/slot_holder.h"
#include "copy/source.h"
#include "vise/buffer.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

constexpr std::uint64_t usual_chunk = std::uint64_t{2} << 20;
constexpr std::uint64_t memory_limit = std::uint64_t{32} << 20;  // of all chunks together
constexpr std::uint64_t sector_size = 512;
constexpr std::uint64_t salvage_step = 64 << 10;               // taken for data where nobody knows
constexpr std::uint64_t status_step = std::uint64_t{1} << 30;  // asked for at once

class Copier {
 public:
  explicit Copier(CopyRequest request);
  Task<void> run();

 private:
  // Clusters copied as they are stored.
  struct Stored {
    GuestOffset start;
    EncodedRun run;
  };
  // A piece of the walk that is dealt with as one: up to chunk_size_ with data in it, or any length
  // without.
  struct Chunk {
    GuestRange range;
    std::vector<CopyPiece> pieces;
    std::vector<Stored> stored;  // in order: the content of the encoded pieces
    std::uint64_t data_length() const;
  };

  Task<void> walk();
  Task<Chunk> next_chunk(GuestOffset start);
  Task<CopyPiece> status_at(std::uint64_t offset);
  Task<CopyPiece> status_of(GuestRange range);
  Task<void> find_out_if_target_is_zero();

  Task<void> process(Chunk chunk, std::uint64_t number);
  Task<void> move_chunk(Chunk chunk, std::uint64_t number);
  Task<void> read_encoded_pieces(Chunk& chunk);
  Task<EncodedRun> read_run(GuestRange range);
  Task<void> verify(const EncodedRun& run, GuestOffset start);
  Task<void> write_stored(const Stored& stored);
  Task<void> read_piece(CopyPiece piece, IoVec data);
  Task<void> salvage(GuestOffset start, IoVec data);
  Task<void> scan(Chunk& chunk, std::span<const std::byte> data, GuestOffset data_start);
  Task<void> drop_zeroes_already_there(Chunk& chunk);
  Task<void> write_piece(CopyPiece piece, ConstIoVec data);
  Task<void> wait_for_turn(std::uint64_t number);
  void pass_turn();
  void stop();

  static std::uint64_t granularity_of(const CopyRequest& request);

  CopyRequest request_;
  CopySource source_;
  Child& target_;
  std::uint64_t total_;
  std::uint64_t granularity_;  // unit in which zeros are left out and data is rounded out
  std::uint64_t cluster_;      // bytes of a cluster of the target
  std::uint64_t chunk_size_;
  AsyncSemaphore slots_;
  TaskScope chunks_;
  CopyPiece known_;  // the status answer the walk is in

  std::uint64_t turn_ = 0;  // number of the chunk that may start its writes
  WaitQueue turn_changed_;
  bool stopped_ = false;
  CopyProgress progress_;
};

std::uint64_t Copier::Chunk::data_length() const {
  std::uint64_t sum = 0;
  for (const CopyPiece& piece : pieces) {
    if (piece.kind == CopyKind::data || piece.kind == CopyKind::encoded) sum += piece.range.length;
  }
  return sum;
}

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

Copier::Copier(CopyRequest request)
    : request_(std::move(request)),
      source_(request_.sources, request_.base),
      target_(*request_.target),
      total_(source_.size()),
      granularity_(granularity_of(request_)),
      cluster_(target_.limits().cluster_size),
      chunk_size_(chunk_size_for(granularity_)),
      slots_(std::clamp<std::uint64_t>(memory_limit / chunk_size_, 1,
                                       std::max(1u, request_.options.chunks_in_flight))) {
  progress_.total = total_;
  const CopyOptions& options = request_.options;
  const bool wanted =
      options.compressed ? options.encoded && granularity_ == cluster_ : options.keep_compressed;
  if (wanted && options.level == 0 && !request_.on_unreadable && target_.limits().can_compress &&
      chunk_size_ % cluster_ == 0) {
    source_.offer_encoded(cluster_);
  }
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
    stop();
  }
  co_await chunks_.join();  // the error of a chunk is the earlier one
  if (failure) std::rethrow_exception(failure);
}

// Asking once is cheaper than for each run of zeros of a new image.
Task<void> Copier::find_out_if_target_is_zero() {
  if (request_.options.target_is_zero || total_ == 0) co_return;
  const GuestRange whole{GuestOffset(0), total_};
  const BlockStatus status = co_await block_status(target_.node(), whole);
  request_.options.target_is_zero = status.zero && status.length >= total_;
}

Task<void> Copier::walk() {
  std::uint64_t number = 0;
  std::uint64_t position = 0;
  while (position < total_ && !stopped_) {
    if (request_.control != nullptr) co_await request_.control->checkpoint();
    Chunk chunk = co_await next_chunk(GuestOffset(position));
    position += chunk.range.length;
    if (request_.control != nullptr) {
      co_await request_.control->pace(chunk.data_length(), request_.clock);
    }
    co_await slots_.acquire();
    if (stopped_) {
      slots_.release();
      break;
    }
    Task<void> work = process(std::move(chunk), number++);
    chunks_.spawn(std::move(work));
  }
}

Task<CopyPiece> Copier::status_of(GuestRange range) {
  try {
    co_return co_await source_.status(range).context(
        fmt::format("error while reading at byte {}", range.start.bytes()));
  } catch (const Error&) {
    if (!request_.on_unreadable) throw;
  }
  // Reading finds out sector by sector what is lost.
  co_return CopyPiece{CopyKind::data,
                      {range.start, std::min(range.length, std::max(granularity_, salvage_step))}};
}

Task<CopyPiece> Copier::status_at(std::uint64_t offset) {
  if (!known_.range.contains(GuestOffset(offset))) {
    const GuestRange range{GuestOffset(offset), std::min(total_ - offset, status_step)};
    known_ = co_await status_of(range);
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

Task<Copier::Chunk> Copier::next_chunk(GuestOffset start) {
  const std::uint64_t from = start.bytes();
  std::uint64_t end = std::min(total_, from - from % chunk_size_ + chunk_size_);
  std::vector<CopyPiece> pieces;
  for (std::uint64_t position = from; position < end;) {
    CopyPiece piece = co_await status_at(position);
    if (position == from && piece.kind != CopyKind::data && piece.range.length >= end - from) {
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
  Chunk chunk;
  chunk.range = {start, end - from};
  chunk.pieces = round_out_data(pieces, granularity_);
  co_return chunk;
}

Task<void> Copier::process(Chunk chunk, std::uint64_t number) {
  const SlotHolder slot(slots_);
  const std::uint64_t length = chunk.range.length;
  const std::uint64_t data_length = chunk.data_length();
  try {
    co_await move_chunk(std::move(chunk), number);
  } catch (...) {
    stop();
    throw;
  }
  if (stopped_) co_return;
  progress_.done += length;
  progress_.data_moved += data_length;
  if (request_.on_progress) request_.on_progress(progress_);
}

Task<void> Copier::move_chunk(Chunk chunk, std::uint64_t number) {
  Buffer buffer;
  GuestOffset data_start;
  co_await read_encoded_pieces(chunk);
  const auto is_data = [](const CopyPiece& piece) { return piece.kind == CopyKind::data; };
  if (std::any_of(chunk.pieces.begin(), chunk.pieces.end(), is_data)) {
    // Data pieces lie in one chunk, so one buffer from the first to the last serves them all.
    const auto first = std::find_if(chunk.pieces.begin(), chunk.pieces.end(), is_data);
    const auto last = std::find_if(chunk.pieces.rbegin(), chunk.pieces.rend(), is_data);
    data_start = first->range.start;
    buffer = Buffer(last->range.end() - data_start);
    TaskScope reads;
    for (const CopyPiece& piece : chunk.pieces) {
      if (!is_data(piece)) continue;
      const IoVec part(buffer.data() + (piece.range.start - data_start), piece.range.length);
      reads.spawn(read_piece(piece, part));
    }
    co_await reads.join();
    if (request_.options.sparse_size > 0) co_await scan(chunk, buffer, data_start);
  }
  co_await drop_zeroes_already_there(chunk);
  co_await wait_for_turn(number);
  if (stopped_) co_return;
  TaskScope writes;
  auto stored = chunk.stored.begin();
  for (const CopyPiece& piece : chunk.pieces) {
    if (piece.kind == CopyKind::skip) continue;
    if (piece.kind == CopyKind::encoded) {
      while (stored != chunk.stored.end() && piece.range.contains(stored->start)) {
        writes.spawn(write_stored(*stored++));
      }
      continue;
    }
    ConstIoVec part;
    if (piece.kind == CopyKind::data) {
      part = ConstIoVec(buffer.data() + (piece.range.start - data_start), piece.range.length);
    }
    writes.spawn(write_piece(piece, part));
  }
  pass_turn();
  co_await writes.join();
}

// Fetches what can be had as it is stored; what cannot becomes data that is read and compressed.
Task<void> Copier::read_encoded_pieces(Chunk& chunk) {
  const auto is_encoded = [](const CopyPiece& piece) { return piece.kind == CopyKind::encoded; };
  if (std::none_of(chunk.pieces.begin(), chunk.pieces.end(), is_encoded)) co_return;
  std::vector<CopyPiece> pieces;
  for (const CopyPiece& piece : chunk.pieces) {
    GuestRange rest = piece.range;
    while (is_encoded(piece) && !rest.empty()) {
      EncodedRun run = co_await read_run(rest);
      CopyPiece part{CopyKind::encoded, {rest.start, 0}};
      for (const EncodedExtent& extent : run.extents) part.range.length += extent.guest_length;
      if (run.extents.empty()) {
        part.kind = CopyKind::data;
        part.range.length = cluster_;
      } else {
        chunk.stored.push_back({rest.start, std::move(run)});
      }
      part.range.length = std::min(part.range.length, rest.length);  // a partial last cluster
      append_piece(pieces, part);
      rest = {part.range.end(), rest.length - part.range.length};
    }
    if (!is_encoded(piece)) append_piece(pieces, piece);
  }
  chunk.pieces = std::move(pieces);
}

// No extents where the target could not take the first of them.
Task<EncodedRun> Copier::read_run(GuestRange range) {
  std::string context = fmt::format("error while reading at byte {}", range.start.bytes());
  EncodedRun run = co_await source_.read_encoded(range).context(std::move(context));
  const Codec codec = target_.limits().codec;
  const auto unfit = std::find_if(run.extents.begin(), run.extents.end(), [&](const auto& extent) {
    return extent.codec != codec || extent.guest_length != cluster_ || extent.data.empty() ||
           extent.data.size() >= cluster_;
  });
  run.extents.erase(unfit, run.extents.end());
  if (request_.options.verify) co_await verify(run, range.start);
  co_return run;
}

Task<void> Copier::verify(const EncodedRun& run, GuestOffset start) {
  std::atomic<std::size_t> damaged{run.extents.size()};  // index of a damaged cluster
  std::function<void(std::size_t)> check = [&](std::size_t i) {
    const EncodedExtent& extent = run.extents[i];
    Buffer cluster(extent.guest_length);
    if (!codec::decompress(extent.codec, extent.data, cluster.span())) damaged = i;
  };
  WorkerPool& workers = target_.node().graph().context().workers();
  co_await workers.for_each(run.extents.size(), std::move(check));
  if (damaged < run.extents.size()) {
    throw Error(EIO,
                fmt::format("error while reading at byte {}: the compressed cluster is damaged",
                            start.bytes() + damaged * cluster_));
  }
}

Task<void> Copier::write_stored(const Stored& stored) {
  std::string context = fmt::format("error while writing at byte {}", stored.start.bytes());
  const WriteFlags flags{.fua = request_.options.fua};
  const bool done = co_await target_.write_encoded(stored.start, stored.run.extents, flags)
                        .context(std::move(context));
  // Codec and length fit, which is all that a target may object to.
  if (!done) throw Error(EIO, "the target refused encoded clusters that it had offered to take");
}

Task<void> Copier::read_piece(CopyPiece piece, IoVec data) {
  if (request_.on_unreadable) {
    co_await salvage(piece.range.start, data);
    co_return;
  }
  co_await source_.read(piece.range.start, data)
      .context(fmt::format("error while reading at byte {}", piece.range.start.bytes()));
}

// Halves what cannot be read until only the sectors are left that are lost.
Task<void> Copier::salvage(GuestOffset start, IoVec data) {
  std::optional<Error> failure;
  try {
    co_await source_.read(start, data);
  } catch (const Error& error) {
    failure = error;
  }
  if (!failure) co_return;
  if (data.size() <= sector_size) {
    data.fill(std::byte{0});
    request_.on_unreadable(start.bytes(), *failure);
    co_return;
  }
  const std::uint64_t half = divide_up(data.size() / 2, sector_size) * sector_size;
  co_await salvage(start, data.first(half));
  co_await salvage(start + half, data.slice(half));
}

// Replaces data pieces by what of them is zero and what is not.
Task<void> Copier::scan(Chunk& chunk, std::span<const std::byte> data, GuestOffset data_start) {
  std::vector<CopyPiece> pieces;
  const std::function<void()> split = [&] {
    for (const CopyPiece& piece : chunk.pieces) {
      if (piece.kind != CopyKind::data) {
        append_piece(pieces, piece);
        continue;
      }
      const auto bytes = data.subspan(piece.range.start - data_start, piece.range.length);
      split_zeroes(bytes, piece.range.start, granularity_, pieces);
    }
  };
  WorkerPool& workers = target_.node().graph().context().workers();
  if (data.size() <= 256 << 10 || workers.threads() < 2) {
    split();
  } else {
    co_await workers.run(split);
  }
  chunk.pieces = std::move(pieces);
}

Task<void> Copier::drop_zeroes_already_there(Chunk& chunk) {
  std::vector<CopyPiece> pieces;
  for (const CopyPiece& piece : chunk.pieces) {
    if (piece.kind != CopyKind::zero) {
      pieces.push_back(piece);
      continue;
    }
    if (request_.options.target_is_zero) continue;
    for (GuestRange rest = piece.range; rest.length > 0;) {
      const BlockStatus status = co_await block_status(target_.node(), rest);
      const std::uint64_t length = std::min(status.length, rest.length);
      if (!status.zero) append_piece(pieces, {CopyKind::zero, {rest.start, length}});
      rest = {rest.start + length, rest.length - length};
    }
  }
  chunk.pieces = std::move(pieces);
}

Task<void> Copier::write_piece(CopyPiece piece, ConstIoVec data) {
  const std::uint64_t offset = piece.range.start.bytes();
  std::string context = fmt::format("error while writing at byte {}", offset);
  if (piece.kind == CopyKind::zero) {
    const ZeroFlags flags{.may_unmap = true, .fua = request_.options.fua};
    co_await target_.write_zeroes(piece.range, flags).context(std::move(context));
    co_return;
  }
  WriteFlags flags{.fua = request_.options.fua,
                   .compressed = request_.options.compressed,
                   .level = request_.options.level};
  // Only the end of the target may be a part of a cluster; if the copy ends before, the rest of
  // the cluster stays what it is.
  const std::uint64_t end = piece.range.end().bytes();
  if (flags.compressed && end % granularity_ != 0 && end < target_.size()) {
    const std::uint64_t whole = data.size() - end % granularity_;
    WriteFlags plain = flags;
    plain.compressed = false;
    if (whole > 0) {
      co_await target_.write(piece.range.start, data.first(whole), flags).context(context);
    }
    co_await target_.write(piece.range.start + whole, data.slice(whole), plain)
        .context(std::move(context));
    co_return;
  }
  co_await target_.write(piece.range.start, data, flags).context(std::move(context));
}

Task<void> Copier::wait_for_turn(std::uint64_t number) {
  while (turn_ != number && !stopped_) co_await turn_changed_.wait();
}

void Copier::pass_turn() {
  ++turn_;
  turn_changed_.wake_all();
}

void Copier::stop() {
  stopped_ = true;
  turn_changed_.wake_all();
}

}  // namespace

Task<void> copy(CopyRequest request) {
  Copier copier(std::move(request));
  co_await copier.run();
}

}  // namespace vise
