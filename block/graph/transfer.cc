// Splitting, padding and bouncing. A request is cut into units of the driver's alignment: whole
// units go down from the caller's memory where that is suitable; a unit that is covered in part is
// read, changed and written as a whole.
#include "graph/transfer.h"

#include <cerrno>
#include <cstring>

#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

constexpr std::uint64_t bounce_bytes = 1u << 20;  // largest bounce buffer, unless a unit is larger
constexpr std::uint64_t small_request = 64u << 10;  // up to here one copy beats three requests
constexpr std::uint64_t zero_buffer_bytes = 1u << 20;

// How much from the front of `data` can go down without a copy: a multiple of `unit`, at most
// `most`; 0 if the first unit already needs one.
std::uint64_t direct_prefix(const EffectiveLimits& limits, const ConstIoVec& data,
                            std::uint64_t unit, std::uint64_t most) {
  const std::uint64_t length = std::min(data.size(), most);
  if (memory_fits(limits, data.first(length))) return length;
  std::uint64_t fitting = 0;
  std::uint32_t segments = 0;
  data.first(length).for_each([&](std::span<const std::byte> part) {
    const auto bits = reinterpret_cast<std::uintptr_t>(part.data()) | part.size();
    if (segments == limits.max_segments || (bits & (limits.memory_alignment - 1)) != 0) {
      return false;
    }
    ++segments;
    fitting += part.size();
    return true;
  });
  fitting = align_down(fitting, unit);
  return memory_fits(limits, data.first(fitting)) ? fitting : 0;
}

std::uint64_t bounce_length(std::uint64_t left, std::uint64_t unit, std::uint64_t most) {
  const std::uint64_t length = std::min({left, most, std::max(bounce_bytes, unit)});
  return align_down(length, unit);
}

// `offset` and the size of `data` are multiples of the read alignment.
Task<void> read_aligned(Target target, GuestOffset offset, IoVec data) {
  const EffectiveLimits& limits = target.limits;
  const std::uint64_t unit = limits.read_alignment;
  const std::uint64_t most = std::max(unit, align_down(limits.max_transfer, unit));
  while (!data.empty()) {
    std::uint64_t length = direct_prefix(limits, data, unit, most);
    if (length > 0) {
      co_await target.driver.read(offset, data.first(length));
    } else {
      length = bounce_length(data.size(), unit, most);
      Buffer bounce(length);
      co_await target.driver.read(offset, IoVec(bounce.span()));
      data.copy_from(bounce);
    }
    offset += length;
    data = data.slice(length);
  }
}

// `offset` and the size of `data` are multiples of the write alignment.
Task<void> write_aligned(Target target, GuestOffset offset, ConstIoVec data, WriteFlags flags) {
  const EffectiveLimits& limits = target.limits;
  const std::uint64_t unit = flags.compressed ? limits.compressed_unit : limits.write_alignment;
  const std::uint64_t most = flags.compressed ? limits.max_compressed : limits.max_transfer;
  while (!data.empty()) {
    std::uint64_t length = direct_prefix(limits, data, unit, most);
    co_await EventPoint(target.driver.reached(Event::pwritev));
    if (length > 0) {
      co_await target.driver.write(offset, data.first(length), flags);
    } else {
      length = bounce_length(data.size(), unit, most);
      if (length == 0) length = data.size();  // a compressed partial cluster at the end
      Buffer bounce(length);
      data.copy_to(bounce);
      co_await target.driver.write(offset, ConstIoVec(bounce.span()), flags);
    }
    co_await EventPoint(target.driver.reached(Event::pwritev_done));
    offset += length;
    data = data.slice(length);
  }
}

// Reads units that may lie past the end of the node in part; what does reads as zeros.
Task<void> read_units(Target target, GuestOffset offset, std::span<std::byte> units) {
  const std::uint64_t end = align_up(target.size, target.limits.read_alignment);
  const std::uint64_t length =
      offset.bytes() >= end ? 0 : std::min<std::uint64_t>(units.size(), end - offset.bytes());
  co_await read_aligned(target, offset, IoVec(units.first(length)));
  const std::uint64_t valid =
      std::min<std::uint64_t>(units.size(), target.size - std::min(target.size, offset.bytes()));
  if (valid < units.size()) std::memset(units.data() + valid, 0, units.size() - valid);
}

// Reads a range through one buffer that covers all units it touches.
Task<void> read_bounced(Target target, GuestOffset offset, IoVec data) {
  const GuestRange units = GuestRange{offset, data.size()}.align_out(target.limits.read_alignment);
  Buffer bounce(units.length);
  co_await read_aligned(target, units.start, IoVec(bounce.span()));
  data.copy_from(bounce.span().subspan(offset - units.start, data.size()));
}

// Writes a range as whole units: what of them the range does not cover is read before.
Task<void> write_padded(Target target, GuestOffset offset, ConstIoVec data, WriteFlags flags) {
  const std::uint64_t unit = target.limits.write_alignment;
  const GuestRange units = GuestRange{offset, data.size()}.align_out(unit);
  const std::uint64_t head = offset - units.start;
  const std::uint64_t data_end = head + data.size();
  const bool tail_exists = data_end < units.length && (offset + data.size()).bytes() < target.size;
  Buffer bounce(units.length);
  const bool one_read = head > 0 && tail_exists && units.length <= 2 * unit;
  if (one_read) {
    co_await EventPoint(target.driver.reached(Event::pwritev_rmw_head));
    co_await EventPoint(target.driver.reached(Event::pwritev_rmw_tail));
    co_await read_units(target, units.start, bounce.span());
    co_await EventPoint(target.driver.reached(Event::pwritev_rmw_after_head));
    co_await EventPoint(target.driver.reached(Event::pwritev_rmw_after_tail));
  } else {
    if (head > 0) {
      co_await EventPoint(target.driver.reached(Event::pwritev_rmw_head));
      co_await read_units(target, units.start, bounce.first(unit));
      co_await EventPoint(target.driver.reached(Event::pwritev_rmw_after_head));
    }
    // (A single unit that the head brought in already has its tail.)
    if (tail_exists && (head == 0 || units.length > unit)) {
      co_await EventPoint(target.driver.reached(Event::pwritev_rmw_tail));
      co_await read_units(target, units.end() - unit, bounce.span().last(unit));
      co_await EventPoint(target.driver.reached(Event::pwritev_rmw_after_tail));
    }
  }
  data.copy_to(bounce.span().subspan(head, data.size()));
  if (data_end < units.length && !tail_exists) {
    std::memset(bounce.data() + data_end, 0, units.length - data_end);
  }
  co_await write_aligned(target, units.start, ConstIoVec(bounce.span()), flags);
}

// One stretch natively; false if the driver cannot.
Task<bool> write_zeroes_natively(Target target, GuestRange range, ZeroFlags flags) {
  co_await EventPoint(target.driver.reached(Event::pwritev_zero));
  try {
    co_await target.driver.write_zeroes(range, flags);
  } catch (const Error& error) {
    if (error.code() != ENOTSUP || flags.no_fallback) throw;
    co_return false;
  }
  co_await EventPoint(target.driver.reached(Event::pwritev_done));
  co_return true;
}

}  // namespace

Task<void> read_any(Target target, GuestOffset offset, IoVec data) {
  const std::uint64_t unit = target.limits.read_alignment;
  const GuestRange range{offset, data.size()};
  const GuestRange units = range.align_out(unit);
  if (units == range) {
    co_await read_aligned(target, offset, data);
    co_return;
  }
  if (units.length <= std::max(2 * unit, small_request)) {
    co_await read_bounced(target, offset, data);
    co_return;
  }
  const GuestOffset middle = offset.align_up(unit);
  const GuestOffset tail = range.end().align_down(unit);
  if (middle > offset) co_await read_bounced(target, offset, data.first(middle - offset));
  co_await read_aligned(target, middle, data.slice(middle - offset, tail - middle));
  if (tail < range.end()) co_await read_bounced(target, tail, data.slice(tail - offset));
}

Task<void> write_any(Target target, GuestOffset offset, ConstIoVec data, WriteFlags flags) {
  const std::uint64_t unit = target.limits.write_alignment;
  const GuestRange range{offset, data.size()};
  const GuestRange units = range.align_out(unit);
  if (units == range) {
    co_await write_aligned(target, offset, data, flags);
    co_return;
  }
  if (units.length <= std::max(2 * unit, small_request)) {
    co_await write_padded(target, offset, data, flags);
    co_return;
  }
  // Compressed writes have no head, and their middle must stay whole clusters.
  const std::uint64_t middle_unit = flags.compressed ? target.limits.compressed_unit : unit;
  const GuestOffset middle = offset.align_up(unit);
  const GuestOffset tail = range.end().align_down(middle_unit);
  if (middle > offset) co_await write_padded(target, offset, data.first(middle - offset), flags);
  co_await write_aligned(target, middle, data.slice(middle - offset, tail - middle), flags);
  if (tail < range.end()) co_await write_padded(target, tail, data.slice(tail - offset), flags);
}

Task<void> write_zeroes_as_data(Target target, GuestRange range, ZeroFlags flags) {
  if (range.empty()) co_return;
  if (flags.no_fallback) {
    throw Error(ENOTSUP, "Zeros cannot be written here without writing them as data");
  }
  const std::uint64_t unit = target.limits.write_alignment;
  const std::uint64_t most = std::max(unit, zero_buffer_bytes);
  const Buffer zeros = Buffer::zeroed(std::min(align_up(range.length, unit), most));
  while (!range.empty()) {
    // Cut at unit borders, so that no unit is read and written twice.
    const std::uint64_t to_border = most - (range.start.bytes() & (unit - 1));
    const std::uint64_t length = std::min({range.length, to_border, std::uint64_t{zeros.size()}});
    const ConstIoVec data(zeros.span().first(length));
    co_await write_any(target, range.start, data, WriteFlags{.fua = flags.fua});
    range = {range.start + length, range.length - length};
  }
}

Task<void> write_zeroes_any(Target target, GuestRange range, ZeroFlags flags) {
  const std::uint64_t unit = target.limits.zero_alignment;
  const GuestOffset end = range.end();
  const GuestOffset middle = range.start.align_up(unit);
  const GuestOffset tail = end.bytes() == target.size ? end : end.align_down(unit);
  if (middle >= tail) {
    co_await write_zeroes_as_data(target, range, flags);
    co_return;
  }
  if (flags.no_fallback && (middle > range.start || tail < end)) {
    throw Error(ENOTSUP, "Zeros cannot be written here without writing them as data");
  }
  co_await write_zeroes_as_data(target, GuestRange{range.start, middle - range.start}, flags);
  bool native = true;
  for (GuestOffset at = middle; at < tail;) {
    const GuestRange piece{at, std::min(tail - at, target.limits.max_zeroes)};
    if (native) {
      const bool done = co_await write_zeroes_natively(target, piece, flags);
      native = done;
    }
    if (!native) co_await write_zeroes_as_data(target, piece, flags);
    at += piece.length;
  }
  co_await write_zeroes_as_data(target, GuestRange{tail, end - tail}, flags);
}

Task<void> discard_any(Target target, GuestRange range) {
  const std::uint64_t unit = target.limits.discard_alignment;
  GuestOffset at = range.start.align_up(unit);
  const GuestOffset end =
      range.end().bytes() == target.size ? range.end() : range.end().align_down(unit);
  while (at < end) {
    const GuestRange piece{at, std::min(end - at, target.limits.max_discard)};
    co_await target.driver.discard(piece);
    at += piece.length;
  }
}

}  // namespace vise
