#include "copy/salvage.h"

#include <algorithm>
#include <optional>

#include "vise/util/checked.h"

namespace vise {

namespace {

constexpr std::uint64_t sector_size = 512;

}  // namespace

Task<CopyPiece> SalvagingSource::status(GuestRange range) {
  try {
    co_return co_await source_.status(range);
  } catch (const Error&) {
    // Reading finds out sector by sector what is lost.
  }
  co_return CopyPiece{CopyKind::data, {range.start, std::min(range.length, step_)}};
}

// Halves what cannot be read until only the sectors are left that are lost.
Task<void> SalvagingSource::read(GuestOffset offset, IoVec data) {
  std::optional<Error> failure;
  try {
    co_await source_.read(offset, data);
  } catch (const Error& error) {
    failure = error;
  }
  if (!failure) co_return;
  if (data.size() <= sector_size) {
    data.fill(std::byte{0});
    on_unreadable_(offset.bytes(), *failure);
    co_return;
  }
  const std::uint64_t half = divide_up(data.size() / 2, sector_size) * sector_size;
  co_await read(offset, data.first(half));
  co_await read(offset + half, data.slice(half));
}

}  // namespace vise
