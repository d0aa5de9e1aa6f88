// The base of filter drivers: forwards everything to the one child below.
#pragma once

#include <memory>
#include <utility>

#include "vise/child.h"
#include "vise/driver.h"

namespace vise {

/// A filter overrides only what it changes. Guest offsets above and below are the same.
class Filter : public Driver {
 public:
  explicit Filter(std::unique_ptr<Child> child) : child_(std::move(child)) {}

  std::uint64_t size() const override { return child_->size(); }
  /// The child's limits, fully: what a filter forces (alignment) it raises in its override.
  Limits limits() const override { return child_->limits(); }
  /// One extent of kind data at the same offset of the child, so that mapping continues there.
  Task<Extent> map(GuestRange range, MapMode mode) override;
  Task<void> read(GuestOffset offset, IoVec data) override;
  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override;
  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override;
  Task<void> discard(GuestRange range) override;
  Task<void> flush() override;
  Task<void> truncate(std::uint64_t size, TruncateOptions options) override;
  Task<EncodedRun> read_encoded(GuestRange range) override;
  Task<bool> write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                           WriteFlags flags) override;
  Task<DriverInfo> info() override;
  Task<void> close() override;

 protected:
  Child& child() const { return *child_; }

 private:
  std::unique_ptr<Child> child_;
};

}  // namespace vise
