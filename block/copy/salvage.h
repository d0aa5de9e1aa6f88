// Reading what is left of a damaged source.
#pragma once

#include <cstdint>
#include <functional>

#include "copy/source.h"
#include "vise/error.h"

namespace vise {

/// Another source, in which each sector (512 bytes) that cannot be read is taken for zeros.
class SalvagingSource final : public PieceSource {
 public:
  using OnUnreadable = std::function<void(std::uint64_t offset, const Error& error)>;
  /// `source` is borrowed. `step`: bytes that are taken for data where nobody knows what is there.
  SalvagingSource(PieceSource& source, std::uint64_t step, OnUnreadable on_unreadable)
      : source_(source), step_(step), on_unreadable_(std::move(on_unreadable)) {}

  Task<CopyPiece> status(GuestRange range) override;
  Task<void> read(GuestOffset offset, IoVec data) override;
  Task<EncodedRun> read_encoded(GuestRange range) override { return source_.read_encoded(range); }

 private:
  PieceSource& source_;
  const std::uint64_t step_;
  const OnUnreadable on_unreadable_;
};

}  // namespace vise
