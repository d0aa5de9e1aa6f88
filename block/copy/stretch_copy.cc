#include "copy/stretch_copy.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "copy/plan.h"
#include "vise/buffer.h"

namespace vise {

namespace {

constexpr std::uint64_t most_in_memory = std::uint64_t{2} << 20;  // bytes of one piece

bool is_whole(const Child& target, GuestRange range) {
  const Limits limits = target.limits();
  const std::uint64_t unit = limits.cluster_size;
  return limits.can_compress && unit != 0 && range.start.bytes() % unit == 0 &&
         (range.length % unit == 0 || range.end().bytes() == target.size());
}

Task<void> store(Child& target, GuestRange range, ConstIoVec data, StretchOptions options) {
  WriteFlags flags{.unchanged = options.unchanged};
  flags.compressed = options.compressed && is_whole(target, range);
  if (flags.compressed) {
    bool refused = false;
    try {
      co_await target.write(range.start, data, flags);
    } catch (const Error& error) {
      if (error.code() != ENOTSUP) throw;
      refused = true;
    }
    if (!refused) co_return;
    flags.compressed = false;
  }
  co_await target.write(range.start, data, flags);
}

class StretchCopier {
 public:
  StretchCopier(const ChainSource& source, Child& target, StretchOptions options)
      : source_(source), target_(target), options_(options), limits_(target.limits()) {}

  Task<void> copy(GuestRange range) {
    while (!range.empty()) {
      const ChainSource::Stretch stretch = co_await status(range);
      std::uint64_t length = stretch.length;
      switch (stretch.kind) {
        case ChainSource::Kind::absent:
          break;
        case ChainSource::Kind::zero:
          co_await write_zeroes({range.start, length});
          break;
        case ChainSource::Kind::compressed:
          length = co_await copy_compressed({range.start, length}, stretch.layer);
          break;
        case ChainSource::Kind::data:
          length = std::min(length, most_in_memory);
          co_await copy_data({range.start, length});
          break;
      }
      range = {range.start + length, range.length - length};
    }
  }

 private:
  // Pieces of a cluster would be written, and compressed, several times.
  Task<ChainSource::Stretch> status(GuestRange range) {
    ChainSource::Stretch stretch = co_await from_source(source_.status(range));
    const std::uint64_t unit = options_.compressed ? limits_.cluster_size : 0;
    if (unit == 0 || stretch.length == range.length) co_return stretch;
    const std::uint64_t end = (range.start + stretch.length).bytes();
    const std::uint64_t whole = end - end % unit;
    if (whole > range.start.bytes()) {
      stretch.length = whole - range.start.bytes();
      co_return stretch;
    }
    stretch.kind = ChainSource::Kind::data;
    stretch.length = std::min(range.length, unit - range.start.bytes() % unit);
    co_return stretch;
  }

  Task<void> write_zeroes(GuestRange range) {
    if (options_.zeroes == StretchOptions::Zeroes::skipped) co_return;
    if (options_.unchanged) {
      co_await zero_unchanged(target_, range, options_);
      co_return;
    }
    while (!range.empty()) {
      const BlockStatus there =
          co_await from_target(block_status(target_.node(), range, MapMode::allocation_only));
      const GuestRange part{range.start, std::min(there.length, range.length)};
      // Only zeros that the image itself holds count: where it has nothing, a backing image may
      // show that its header names and that is not open here.
      const bool is_there = there.zero && there.allocated && there.depth == 0;
      if (!is_there) {
        const ZeroFlags flags{.may_unmap = true};
        co_await from_target(target_.write_zeroes(part, flags));
      }
      range = {part.end(), range.length - part.length};
    }
  }

  // Bytes dealt with.
  Task<std::uint64_t> copy_compressed(GuestRange range, std::size_t layer) {
    if (may_move_encoded(range)) {
      EncodedRun run = co_await from_source(source_.read_encoded(range, layer));
      const bool fits =
          !run.extents.empty() && std::ranges::all_of(run.extents, [&](const auto& e) {
            return e.codec == limits_.codec && e.guest_length == limits_.cluster_size &&
                   e.data.size() < limits_.cluster_size;
          });
      if (fits) {
        const bool stored = co_await from_target(
            target_.write_encoded(range.start, run.extents, {.unchanged = options_.unchanged}));
        if (stored) {
          co_return std::min(run.extents.size() * limits_.cluster_size, range.length);
        }
      }
    }
    const std::uint64_t length = std::min(range.length, most_in_memory);
    co_await copy_data({range.start, length});
    co_return length;
  }

  bool may_move_encoded(GuestRange range) const {
    const std::uint64_t unit = limits_.cluster_size;
    if (!options_.encoded || !limits_.can_compress || unit == 0) return false;
    const bool ends_well =
        range.end().bytes() % unit == 0 ||
        (range.end().bytes() == source_.size() && range.end().bytes() == target_.size());
    return range.start.bytes() % unit == 0 && ends_well;
  }

  Task<void> copy_data(GuestRange range) {
    Buffer buffer(range.length);
    co_await from_source(source_.read(range.start, IoVec(buffer.span())));
    std::vector<CopyPiece> pieces;
    if (options_.compressed) {
      // Zeros among compressed clusters would be left out where no backing image is open.
      split_zeroes(buffer.span(), range.start, limits_.cluster_size, pieces);
    } else {
      pieces.push_back({CopyKind::data, range});
    }
    for (const CopyPiece& piece : pieces) {
      if (piece.kind == CopyKind::zero) {
        co_await write_zeroes(piece.range);
        continue;
      }
      const auto bytes = buffer.span().subspan(piece.range.start - range.start, piece.range.length);
      co_await from_target(store(target_, piece.range, ConstIoVec(bytes), options_));
    }
  }

  template <class T>
  static Task<T> on_side(Task<T> task, CopyError::Side side) {
    try {
      if constexpr (std::is_void_v<T>) {
        co_await std::move(task);
      } else {
        co_return co_await std::move(task);
      }
    } catch (const Error& error) {
      throw CopyError(error, side);
    }
  }
  template <class T>
  static Task<T> from_source(Task<T> task) {
    return on_side(std::move(task), CopyError::Side::source);
  }
  template <class T>
  static Task<T> from_target(Task<T> task) {
    return on_side(std::move(task), CopyError::Side::target);
  }

  const ChainSource& source_;
  Child& target_;
  const StretchOptions options_;
  const Limits limits_;
};

}  // namespace

Task<void> zero_unchanged(Child& target, GuestRange range, StretchOptions options) {
  Buffer zeroes(std::min(range.length, most_in_memory));
  std::memset(zeroes.data(), 0, zeroes.size());
  try {
    while (!range.empty()) {
      const GuestRange part{range.start, std::min<std::uint64_t>(range.length, zeroes.size())};
      co_await store(target, part, ConstIoVec(zeroes.span().first(part.length)), options);
      range = {part.end(), range.length - part.length};
    }
  } catch (const Error& error) {
    throw CopyError(error, CopyError::Side::target);
  }
}

Task<void> copy_stretch(const ChainSource& source, Child& target, GuestRange range,
                        StretchOptions options) {
  StretchCopier copier(source, target, options);
  co_await copier.copy(range);
}

}  // namespace vise
