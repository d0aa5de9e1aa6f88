// Stretches are copied as chunks, some of them together: jobs have several calls in flight.
#include "copy/stretch_copy.h"

#include <algorithm>
#include <list>
#include <span>
#include <utility>
#include <vector>

#include "copy/chunk.h"
#include "copy/plan.h"
#include "copy/turns.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

// Bytes of one chunk. Larger ones cost more, as buffers of all sizes are needed at the same time.
constexpr std::uint64_t chunk_size = std::uint64_t{512} << 10;
// Bytes of those that are fetched, and then stored, together.
constexpr std::uint64_t batch_size = std::uint64_t{2} << 20;

// The images of a chain, as far as they are copied, in pieces for one target. What lies past the
// end of the uppermost reads as zeros.
class ChainPieces final : public PieceSource {
 public:
  ChainPieces(const ChainSource& chain, const Child& target, StretchOptions options)
      : chain_(chain), target_size_(target.size()) {
    const Limits limits = target.limits();
    if (options.encoded && limits.can_compress) encoded_cluster_size_ = limits.cluster_size;
  }

  Task<CopyPiece> status(GuestRange range) override {
    const std::uint64_t start = range.start.bytes();
    if (start >= chain_.size()) co_return CopyPiece{CopyKind::zero, range};
    range.length = std::min(range.length, chain_.size() - start);
    const ChainSource::Stretch stretch = co_await chain_.status(range);
    CopyPiece piece{CopyKind::data, {range.start, stretch.length}};
    switch (stretch.kind) {
      case ChainSource::Kind::absent:
        piece.kind = CopyKind::skip;
        break;
      case ChainSource::Kind::zero:
        piece.kind = CopyKind::zero;
        break;
      case ChainSource::Kind::compressed:
        if (const std::uint64_t length = whole_clusters(piece.range); length > 0) {
          piece = {CopyKind::encoded, {range.start, length}};
        }
        break;
      case ChainSource::Kind::data:
        break;
    }
    co_return piece;
  }

  Task<void> read(GuestOffset offset, IoVec data) override {
    const std::uint64_t size = std::max(chain_.size(), offset.bytes());
    const std::uint64_t stored = std::min(data.size(), size - offset.bytes());
    if (stored > 0) co_await chain_.read(offset, data.first(stored));
    if (stored < data.size()) data.slice(stored, data.size() - stored).fill(std::byte{0});
  }

  Task<EncodedRun> read_encoded(GuestRange range) override {
    const ChainSource::Stretch stretch = co_await chain_.status(range);
    if (stretch.kind != ChainSource::Kind::compressed) co_return EncodedRun();
    const GuestRange held{range.start, whole_clusters({range.start, stretch.length})};
    if (held.empty()) co_return EncodedRun();
    co_return co_await chain_.read_encoded(held, stretch.layer);
  }

 private:
  // Bytes of whole clusters at the start of `range`; the last one of the disk may be partial.
  std::uint64_t whole_clusters(GuestRange range) const {
    const std::uint64_t unit = encoded_cluster_size_;
    if (unit == 0 || !range.start.is_aligned(unit)) return 0;
    const std::uint64_t end = range.end().bytes();
    if (end == chain_.size() && end == target_size_) return range.length;
    return range.length - std::min(range.length, end % unit);
  }

  const ChainSource& chain_;
  const std::uint64_t target_size_;
  std::uint64_t encoded_cluster_size_ = 0;  // 0: nothing is moved as it is stored
};

ChunkOptions chunk_options(const Child& target, StretchOptions options) {
  ChunkOptions result;
  result.may_unmap = options.may_unmap;
  result.compressed = options.compressed && target.limits().can_compress;
  result.may_be_normal = true;
  result.unchanged = options.unchanged;
  // Zeros among compressed clusters would be left out where no backing image is open.
  result.zero_unit = options.compressed ? target.limits().cluster_size : 0;
  if (options.zeroes == StretchOptions::Zeroes::skipped) {
    result.zeroes = ChunkOptions::Zeroes::skipped;
  } else {
    result.zeroes = options.unchanged ? ChunkOptions::Zeroes::as_data : ChunkOptions::Zeroes::own;
  }
  return result;
}

Task<std::vector<CopyPiece>> pieces_of(ChainPieces& source, GuestRange range) {
  std::vector<CopyPiece> pieces;
  try {
    while (!range.empty()) {
      const CopyPiece piece = co_await source.status(range);
      append_piece(pieces, piece);
      range = {piece.range.end(), range.length - piece.range.length};
    }
  } catch (const Error& error) {
    throw CopyError(error, CopyError::Side::source, range.start);
  }
  co_return pieces;
}

// Chunks that end where multiples of `most` are.
std::vector<GuestRange> cut(std::span<const GuestRange> stretches, std::uint64_t most) {
  std::vector<GuestRange> parts;
  for (GuestRange rest : stretches) {
    while (!rest.empty()) {
      const std::uint64_t to_border = most - rest.start.bytes() % most;
      const GuestRange part{rest.start, std::min(rest.length, to_border)};
      parts.push_back(part);
      rest = {part.end(), rest.length - part.length};
    }
  }
  return parts;
}

class StretchCopier {
 public:
  StretchCopier(const ChainSource& source, Child& target, StretchOptions options)
      : source_(source, target, options),
        target_(target),
        options_(chunk_options(target, options)),
        unit_(options_.compressed ? options_.zero_unit : 1) {}

  Task<void> run(std::vector<GuestRange> stretches, Turn* turn) {
    // Pieces of a cluster would be written, and compressed, several times.
    const std::vector<GuestRange> parts = cut(stretches, divide_up(chunk_size, unit_) * unit_);
    for (std::size_t first = 0; first < parts.size();) {
      std::size_t end = first;
      std::uint64_t bytes = 0;
      while (end < parts.size() && (bytes == 0 || bytes + parts[end].length <= batch_size)) {
        bytes += parts[end++].length;
      }
      std::list<Chunk> chunks;
      co_await fetch(std::span(parts).subspan(first, end - first), chunks);
      if (turn != nullptr && first == 0) co_await turn->wait();
      TaskScope writes;
      for (Chunk& chunk : chunks) chunk.start_storing(writes);
      if (turn != nullptr && end == parts.size()) turn->pass();
      co_await writes.join();
      first = end;
    }
  }

 private:
  Task<void> fetch(std::span<const GuestRange> parts, std::list<Chunk>& chunks) {
    for (const GuestRange& part : parts) {
      std::vector<CopyPiece> pieces = co_await pieces_of(source_, part);
      pieces = round_out_data(pieces, unit_);
      chunks.emplace_back(source_, target_, options_, std::move(pieces));
    }
    TaskScope fetches;
    for (Chunk& chunk : chunks) fetches.spawn(chunk.fetch());
    co_await fetches.join();
  }

  ChainPieces source_;
  Child& target_;
  const ChunkOptions options_;
  const std::uint64_t unit_;  // that data is rounded out to
};

}  // namespace

Task<void> copy_stretches(const ChainSource& source, Child& target,
                          std::vector<GuestRange> stretches, StretchOptions options, Turn* turn) {
  StretchCopier copier(source, target, options);
  co_await copier.run(std::move(stretches), turn);
}

}  // namespace vise
