#include "copy/plan.h"

#include <algorithm>

#include "vise/io_vec.h"
#include "vise/util/checked.h"

namespace vise {

void append_piece(std::vector<CopyPiece>& pieces, const CopyPiece& piece) {
  if (piece.range.empty()) return;
  if (!pieces.empty() && pieces.back().kind == piece.kind &&
      pieces.back().range.end() == piece.range.start) {
    pieces.back().range.length += piece.range.length;
  } else {
    pieces.push_back(piece);
  }
}

namespace {

// The data pieces rounded outwards inside [start, end), merged where they touch.
std::vector<GuestRange> rounded_data(std::span<const CopyPiece> pieces, std::uint64_t granularity) {
  const GuestOffset start = pieces.front().range.start;
  const GuestOffset end = pieces.back().range.end();
  std::vector<GuestRange> result;
  for (const CopyPiece& piece : pieces) {
    if (piece.kind != CopyKind::data) continue;
    const std::uint64_t first = piece.range.start.bytes();
    const std::uint64_t last = piece.range.end().bytes();
    const auto from = std::max(start, GuestOffset(first - first % granularity));
    const auto to = std::min(end, GuestOffset(divide_up(last, granularity) * granularity));
    if (!result.empty() && result.back().end() >= from) {
      result.back().length = std::max(result.back().end(), to) - result.back().start;
    } else {
      result.push_back({from, to - from});
    }
  }
  return result;
}

}  // namespace

std::vector<CopyPiece> round_out_data(std::span<const CopyPiece> pieces,
                                      std::uint64_t granularity) {
  std::vector<CopyPiece> result;
  if (pieces.empty()) return result;
  GuestOffset done = pieces.front().range.start;  // planned up to here
  std::size_t i = 0;
  const auto take_over_until = [&](GuestOffset to) {
    while (done < to) {
      while (pieces[i].range.end() <= done) ++i;
      const GuestOffset end = std::min(pieces[i].range.end(), to);
      append_piece(result, {pieces[i].kind, {done, end - done}});
      done = end;
    }
  };
  for (const GuestRange& data : rounded_data(pieces, granularity)) {
    take_over_until(data.start);
    append_piece(result, {CopyKind::data, data});
    done = data.end();
  }
  take_over_until(pieces.back().range.end());
  return result;
}

void split_zeroes(std::span<const std::byte> data, GuestOffset offset, std::uint64_t granularity,
                  std::vector<CopyPiece>& pieces) {
  std::uint64_t position = offset.bytes();
  while (!data.empty()) {
    const std::uint64_t unit =
        std::min<std::uint64_t>(granularity - position % granularity, data.size());
    const CopyKind kind = is_zero(data.first(unit)) ? CopyKind::zero : CopyKind::data;
    append_piece(pieces, {kind, {GuestOffset(position), unit}});
    data = data.subspan(unit);
    position += unit;
  }
}

}  // namespace vise
