// The planning of one chunk of a copy: which stretches are read, which are zeroed. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "copy/source.h"

namespace vise {

/// Rounds the data pieces of one chunk outwards to `granularity` (the target would have to fill up
/// its allocation unit anyway) and merges neighbours of one kind. `pieces` are in order and without
/// gaps; so is the result. The chunk's start is a multiple of `granularity`, its end too unless it
/// is the end of the copy.
std::vector<CopyPiece> round_out_data(std::span<const CopyPiece> pieces, std::uint64_t granularity);

/// Appends the runs of zero and other units of `data`, which lies at `offset` of the copy, to
/// `pieces`, merging with the last one where the kinds agree. Units are `granularity` bytes at
/// multiples of it; partial ones at either end count by themselves.
void split_zeroes(std::span<const std::byte> data, GuestOffset offset, std::uint64_t granularity,
                  std::vector<CopyPiece>& pieces);

/// Appends one piece, merging it with the last one if it continues that.
void append_piece(std::vector<CopyPiece>& pieces, const CopyPiece& piece);

}  // namespace vise
