// A stretch is copied as chunks, one after the other: jobs have several stretches in flight.
#include "copy/stretch_copy.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "copy/chunk.h"
#include "copy/plan.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

// Bytes of one chunk. Larger ones cost more, as buffers of all sizes are needed at the same time.
constexpr std::uint64_t most_in_memory = std::uint64_t{512} << 10;

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

Task<void> store(Chunk& chunk) {
  TaskScope writes;
  chunk.start_storing(writes);
  co_await writes.join();
}

}  // namespace

Task<void> copy_stretch(const ChainSource& source, Child& target, GuestRange range,
                        StretchOptions options) {
  ChainPieces chain(source, target, options);
  const ChunkOptions chunk_options = vise::chunk_options(target, options);
  // Pieces of a cluster would be written, and compressed, several times.
  const std::uint64_t unit = chunk_options.compressed ? chunk_options.zero_unit : 1;
  const std::uint64_t most = divide_up(most_in_memory, unit) * unit;
  while (!range.empty()) {
    const std::uint64_t to_border = most - range.start.bytes() % most;
    const GuestRange part{range.start, std::min(range.length, to_border)};
    std::vector<CopyPiece> pieces = co_await pieces_of(chain, part);
    pieces = round_out_data(pieces, unit);
    Chunk chunk(chain, target, chunk_options, std::move(pieces));
    co_await chunk.fetch();
    co_await store(chunk);
    range = {part.end(), range.length - part.length};
  }
}

}  // namespace vise
