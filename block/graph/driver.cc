// What drivers get for free: the defaults of Driver, and Filter, which passes everything on.
#include "vise/driver.h"

#include <cerrno>

#include "vise/error.h"
#include "vise/filter.h"
#include "vise/graph.h"

namespace vise {

Driver::~Driver() = default;

Task<void> Driver::write_zeroes(GuestRange, ZeroFlags) {
  throw Error(ENOTSUP, "The driver cannot write zeros");
  co_return;
}

Task<void> Driver::discard(GuestRange) { co_return; }

Task<void> Driver::truncate(std::uint64_t, TruncateOptions) {
  throw Error(ENOTSUP, "The image format driver does not support resizing");
  co_return;
}

Task<EncodedRun> Driver::read_encoded(GuestRange) { co_return EncodedRun(); }

Task<bool> Driver::write_encoded(GuestOffset, std::span<const EncodedExtent>, WriteFlags) {
  co_return false;
}

Task<std::uint64_t> Driver::copy_out(GuestRange, CopySink&) { co_return 0; }
Task<bool> Driver::copy_in(GuestOffset, FileStretch, WriteFlags) { co_return false; }

Task<DriverInfo> Driver::info() { co_return DriverInfo{}; }

Task<void> Driver::apply_permissions(Permissions) { co_return; }
Task<void> Driver::reopen(bool) { co_return; }
std::span<const std::string_view> Driver::changeable_options() const { return {}; }
Task<std::function<void()>> Driver::prepare_reopen(OpenContext& context) {
  context.options() = {};  // all as they were
  co_return std::function<void()>();
}
Task<void> Driver::drain() { co_return; }
EventPause* Driver::reached(Event) { return nullptr; }

namespace {

// The request ends past the node, in the unit that its size cuts (see Limits).
Task<void> read_last_unit(Child& child, GuestOffset offset, IoVec data) {
  const std::uint64_t valid = child.size() - offset.bytes();
  co_await child.read(offset, data.first(valid));
  data.slice(valid).fill(std::byte{0});
}

}  // namespace

Task<Extent> Filter::map(GuestRange range, MapMode) {
  Extent extent;
  extent.kind = Extent::Kind::data;
  extent.length = range.length;
  extent.host = HostOffset(range.start.bytes());
  extent.node = &child_->node();
  extent.forwarded = true;
  co_return extent;
}

Task<void> Filter::read(GuestOffset offset, IoVec data) {
  if (GuestRange{offset, data.size()}.ends_by(size())) return child_->read(offset, data);
  return read_last_unit(*child_, offset, data);
}

Task<void> Filter::write(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
  const bool inside = GuestRange{offset, data.size()}.ends_by(size());
  // What a growing node is written past its end stays: it cannot be told from padding.
  if (inside || child_->limits().growable) return child_->write(offset, data, flags);
  return child_->write(offset, data.first(size() - offset.bytes()), flags);
}

Task<void> Filter::write_zeroes(GuestRange range, ZeroFlags flags) {
  return child_->write_zeroes(range, flags);
}

Task<void> Filter::discard(GuestRange range) { return child_->discard(range); }
Task<void> Filter::flush() { return child_->flush(); }

Task<void> Filter::truncate(std::uint64_t size, TruncateOptions options) {
  return child_->truncate(size, options);
}

Task<EncodedRun> Filter::read_encoded(GuestRange range) { return child_->read_encoded(range); }

Task<bool> Filter::write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                                 WriteFlags flags) {
  return child_->write_encoded(offset, extents, flags);
}

Task<DriverInfo> Filter::info() { return child_->node().driver().info(); }

Task<void> Filter::close() {
  std::exception_ptr failure;
  try {
    co_await child_->flush();
  } catch (...) {
    failure = std::current_exception();
  }
  try {
    co_await child_->detach();
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace vise
