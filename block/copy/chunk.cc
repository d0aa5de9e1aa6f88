#include "copy/chunk.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

#include "codec/codec.h"
#include "copy/copy_error.h"
#include "copy/plan.h"
#include "vise/context.h"
#include "vise/graph.h"

namespace vise {

namespace {

using Side = CopyError::Side;

template <class T>
Task<T> on_side(Task<T> task, Side side, GuestOffset at) {
  try {
    if constexpr (std::is_void_v<T>) {
      co_await std::move(task);
    } else {
      co_return co_await std::move(task);
    }
  } catch (const CopyError&) {
    throw;
  } catch (const Error& error) {
    throw CopyError(error, side, at);
  }
}

bool is_data(const CopyPiece& piece) { return piece.kind == CopyKind::data; }
bool is_encoded(const CopyPiece& piece) { return piece.kind == CopyKind::encoded; }
bool is_in_file(const CopyPiece& piece) { return piece.kind == CopyKind::in_file; }

}  // namespace

std::uint64_t data_length(std::span<const CopyPiece> pieces) {
  std::uint64_t sum = 0;
  for (const CopyPiece& piece : pieces) {
    if (is_data(piece) || is_encoded(piece) || is_in_file(piece)) sum += piece.range.length;
  }
  return sum;
}

Chunk::Chunk(PieceSource& source, Child& target, const ChunkOptions& options,
             std::vector<CopyPiece> pieces)
    : source_(source),
      target_(target),
      options_(options),
      limits_(target.limits()),
      pieces_(std::move(pieces)) {}

// --- the source ---------------------------------------------------------------------------------

Task<void> Chunk::fetch() {
  if (std::ranges::any_of(pieces_, is_encoded)) co_await fetch_encoded();
  if (std::ranges::any_of(pieces_, is_data)) co_await fetch_data();
  co_await leave_out_zeroes();
}

// Fetches what can be had as it is stored; what cannot becomes data that is read and compressed.
Task<void> Chunk::fetch_encoded() {
  std::vector<CopyPiece> pieces;
  for (const CopyPiece& piece : pieces_) {
    GuestRange rest = piece.range;
    while (is_encoded(piece) && !rest.empty()) {
      EncodedRun run = co_await read_run(rest);
      CopyPiece part{CopyKind::encoded, {rest.start, 0}};
      for (const EncodedExtent& extent : run.extents) part.range.length += extent.guest_length;
      const bool is_there = !run.extents.empty();
      if (!is_there) {
        part.kind = CopyKind::data;
        part.range.length = limits_.cluster_size;
      }
      part.range.length = std::min(part.range.length, rest.length);  // a partial last cluster
      if (is_there) stored_.push_back({part.range, std::move(run)});
      append_piece(pieces, part);
      rest = {part.range.end(), rest.length - part.range.length};
    }
    if (!is_encoded(piece)) append_piece(pieces, piece);
  }
  pieces_ = std::move(pieces);
}

// No extents where the target could not take the first of them.
Task<EncodedRun> Chunk::read_run(GuestRange range) {
  EncodedRun run = co_await on_side(source_.read_encoded(range), Side::source, range.start);
  const auto unfit = std::ranges::find_if(run.extents, [&](const EncodedExtent& extent) {
    return extent.codec != limits_.codec || extent.guest_length != limits_.cluster_size ||
           extent.data.empty() || extent.data.size() >= limits_.cluster_size;
  });
  run.extents.erase(unfit, run.extents.end());
  if (options_.verify) co_await verify(run, range.start);
  co_return run;
}

Task<void> Chunk::verify(const EncodedRun& run, GuestOffset start) {
  std::atomic<std::size_t> damaged{run.extents.size()};  // index of a damaged cluster
  std::function<void(std::size_t)> check = [&](std::size_t i) {
    const EncodedExtent& extent = run.extents[i];
    Buffer cluster(extent.guest_length);
    if (!codec::decompress(extent.codec, extent.data, cluster.span())) damaged = i;
  };
  WorkerPool& workers = target_.node().graph().context().workers();
  co_await workers.for_each(run.extents.size(), std::move(check));
  if (damaged < run.extents.size()) {
    throw CopyError(Error(EIO, "the compressed cluster is damaged"), Side::source,
                    start + damaged * limits_.cluster_size);
  }
}

Task<void> Chunk::fetch_data() {
  std::uint64_t length = 0;
  for (const CopyPiece& piece : pieces_) length += is_data(piece) ? piece.range.length : 0;
  buffer_ = Buffer(length);
  std::byte* bytes = buffer_.data();
  TaskScope reads;
  for (const CopyPiece& piece : pieces_) {
    if (!is_data(piece)) continue;
    const IoVec part(bytes, piece.range.length);
    reads_.push_back({piece.range, bytes});
    bytes += piece.range.length;
    reads.spawn(on_side(source_.read(piece.range.start, part), Side::source, piece.range.start));
  }
  co_await reads.join();
  if (options_.zero_unit > 0) co_await scan();
}

// Of a data piece, or a part of one.
std::span<const std::byte> Chunk::content(GuestRange range) const {
  const auto found = std::ranges::find_if(
      reads_, [&](const Read& read) { return read.range.contains(range.start); });
  assert(found != reads_.end() && found->range.end() >= range.end());
  return {found->bytes + (range.start - found->range.start), range.length};
}

// Replaces data pieces by what of them is zero and what is not.
Task<void> Chunk::scan() {
  std::vector<CopyPiece> pieces;
  const std::function<void()> split = [&] {
    for (const CopyPiece& piece : pieces_) {
      if (is_data(piece)) {
        split_zeroes(content(piece.range), piece.range.start, options_.zero_unit, pieces);
      } else {
        append_piece(pieces, piece);
      }
    }
  };
  WorkerPool& workers = target_.node().graph().context().workers();
  if (buffer_.size() <= 256 << 10 || workers.threads() < 2) {
    split();
  } else {
    co_await workers.run(split);
  }
  pieces_ = std::move(pieces);
}

Task<void> Chunk::leave_out_zeroes() {
  using Zeroes = ChunkOptions::Zeroes;
  if (options_.zeroes == Zeroes::as_data) co_return;
  const bool own = options_.zeroes == Zeroes::own;
  std::vector<CopyPiece> pieces;
  for (const CopyPiece& piece : pieces_) {
    if (piece.kind != CopyKind::zero) {
      pieces.push_back(piece);
      continue;
    }
    if (options_.zeroes == Zeroes::skipped) continue;
    for (GuestRange rest = piece.range; rest.length > 0;) {
      const BlockStatus status = co_await on_side(
          block_status(target_.node(), rest, own ? MapMode::allocation_only : MapMode::precise),
          Side::target, rest.start);
      const std::uint64_t length = std::min(status.length, rest.length);
      // Where the image itself has nothing, its header may name a backing image that shows, and
      // that is not open here.
      const bool is_there = status.zero && (!own || (status.allocated && status.depth == 0));
      if (!is_there) append_piece(pieces, {CopyKind::zero, {rest.start, length}});
      rest = {rest.start + length, rest.length - length};
    }
  }
  pieces_ = std::move(pieces);
}

// --- the target ---------------------------------------------------------------------------------

// First what is stored as it is, then the rest: between each other they would lie scattered in the
// file, since what does not shrink takes whole clusters.
void Chunk::start_storing(TaskScope& writes) {
  const auto start = [&writes](Task<void> write, GuestOffset at) {
    writes.spawn(on_side(std::move(write), Side::target, at));
  };
  for (const Stored& stored : stored_) start(write_stored(stored), stored.range.start);
  for (const CopyPiece& piece : pieces_) {
    if (is_data(piece)) {
      start(write_data(piece.range, ConstIoVec(content(piece.range))), piece.range.start);
    } else if (piece.kind == CopyKind::zero) {
      start(write_zeroes(piece.range), piece.range.start);
    }
  }
}

std::uint64_t Chunk::bytes_in_files() const {
  std::uint64_t sum = 0;
  for (const CopyPiece& piece : pieces_) sum += is_in_file(piece) ? piece.range.length : 0;
  return sum;
}

Task<std::uint64_t> Chunk::copy_files() {
  std::vector<CopyPiece> left;
  std::uint64_t copied = 0;
  for (const CopyPiece& piece : pieces_) {
    if (!is_in_file(piece)) continue;
    const std::uint64_t done = co_await copy_file(piece.range);
    append_piece(left, {CopyKind::data, {piece.range.start + done, piece.range.length - done}});
    copied += done;
  }
  if (left.empty()) co_return copied;
  Chunk rest(source_, target_, options_, std::move(left));
  co_await rest.fetch();
  TaskScope writes;
  rest.start_storing(writes);
  co_await writes.join();
  co_return copied;
}

// How much of it from its start on is copied.
Task<std::uint64_t> Chunk::copy_file(GuestRange range) {
  const WriteFlags flags{.fua = options_.fua, .unchanged = options_.unchanged};
  std::uint64_t done = 0;
  while (done < range.length) {
    const GuestRange rest{range.start + done, range.length - done};
    std::uint64_t copied = 0;
    try {
      copied = co_await source_.copy_range(rest, target_, flags);
    } catch (const Error& error) {
      if (error.code() == ECANCELED) throw;
      // Reading and writing tell which of the two it was.
    }
    if (copied == 0) break;
    done += copied;
  }
  co_return done;
}

Task<void> Chunk::write_stored(const Stored& stored) {
  const WriteFlags flags{.fua = options_.fua, .unchanged = options_.unchanged};
  const bool taken = co_await target_.write_encoded(stored.range.start, stored.run.extents, flags);
  if (taken) co_return;
  // What is in its place cannot be replaced by it.
  Buffer buffer(stored.range.length);
  co_await on_side(source_.read(stored.range.start, IoVec(buffer.span())), Side::source,
                   stored.range.start);
  co_await write_data(stored.range, ConstIoVec(buffer.span()));
}

Task<void> Chunk::write_data(GuestRange range, ConstIoVec data) {
  WriteFlags flags{.fua = options_.fua, .unchanged = options_.unchanged, .level = options_.level};
  const std::uint64_t unit = limits_.cluster_size;
  std::uint64_t whole = 0;  // bytes to be compressed
  if (options_.compressed && range.start.is_aligned(std::max<std::uint64_t>(unit, 1))) {
    // Only the end of the target may be a part of a cluster; if the copy ends before, the rest of
    // the cluster stays what it is.
    const std::uint64_t end = range.end().bytes();
    whole = unit == 0 || end == target_.size() ? range.length
                                               : range.length - std::min(range.length, end % unit);
  }
  if (whole > 0) {
    flags.compressed = true;
    co_await write_part({range.start, whole}, data.first(whole), flags);
    flags.compressed = false;
  }
  if (whole == range.length) co_return;
  const GuestRange rest{range.start + whole, range.length - whole};
  co_await write_part(rest, data.slice(whole), flags);
}

Task<void> Chunk::write_part(GuestRange range, ConstIoVec data, WriteFlags flags) {
  bool refused = false;
  try {
    co_await target_.write(range.start, data, flags);
  } catch (const Error& error) {
    if (error.code() != ENOTSUP || !flags.compressed || !options_.may_be_normal) throw;
    refused = true;
  }
  if (!refused) co_return;
  flags.compressed = false;
  co_await target_.write(range.start, data, flags);
}

Task<void> Chunk::write_zeroes(GuestRange range) {
  if (options_.zeroes != ChunkOptions::Zeroes::as_data) {
    const ZeroFlags flags{.may_unmap = options_.may_unmap, .fua = options_.fua};
    co_await target_.write_zeroes(range, flags);
    co_return;
  }
  Buffer zeroes(std::min<std::uint64_t>(range.length, 2u << 20));
  std::memset(zeroes.data(), 0, zeroes.size());
  while (!range.empty()) {
    const GuestRange part{range.start, std::min<std::uint64_t>(range.length, zeroes.size())};
    co_await write_data(part, ConstIoVec(zeroes.span().first(part.length)));
    range = {part.end(), range.length - part.length};
  }
}

}  // namespace vise
