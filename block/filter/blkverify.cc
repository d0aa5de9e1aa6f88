// blkverify: holds a driver that is being tested against raw data. Writes go to both, reads come
// from both, and fail where they differ.
#include <fmt/format.h>

#include <cerrno>
#include <memory>
#include <utility>

#include "filter/filters.h"
#include "util/driver_options.h"
#include "vise/error.h"
#include "vise/filter.h"
#include "vise/graph.h"

namespace vise {

namespace {

/// How one of the two requests ended.
struct Outcome {
  int error_code = 0;
  std::string text;
};

Task<Outcome> outcome_of(Task<void> request) {
  try {
    co_await std::move(request);
  } catch (const Error& error) {
    co_return Outcome(error.code(), error.message());
  }
  co_return Outcome();
}

class BlkverifyDriver final : public Filter {
 public:
  BlkverifyDriver(std::unique_ptr<Child> test, std::unique_ptr<Child> raw)
      : Filter(std::move(test)), raw_(std::move(raw)) {}

  Limits limits() const override {
    Limits limits = child().limits();
    const Limits raw = raw_->limits();
    limits.request_alignment = std::max(limits.request_alignment, raw.request_alignment);
    limits.write_alignment = std::max(limits.write_alignment, raw.write_alignment);
    limits.native_fua = false;
    limits.can_discard = false;  // the two may differ afterwards
    limits.can_compress = false;
    limits.growable = false;
    return limits;
  }

  Task<void> read(GuestOffset offset, IoVec data) override {
    Task<void> test = Filter::read(offset, data);
    const Outcome tested = co_await outcome_of(std::move(test));
    const std::uint64_t length = std::min(data.size(), size() - offset.bytes());
    Buffer expected(length);
    Task<void> raw = raw_->read(offset, IoVec(expected.span()));
    const Outcome other = co_await outcome_of(std::move(raw));
    settle("read", offset, length, tested, other);
    Buffer read(length);
    data.first(length).copy_to(read.span());
    const auto differing = std::ranges::mismatch(read.span(), expected.span());
    if (differing.in1 == read.span().end()) co_return;
    const std::uint64_t at = static_cast<std::uint64_t>(differing.in1 - read.span().begin());
    throw Error(EIO, fmt::format("blkverify: read of {} bytes at offset {}: contents differ at "
                                 "offset {}: {:#04x}, not {:#04x}",
                                 length, offset.bytes(), offset.bytes() + at,
                                 std::to_integer<unsigned>(*differing.in1),
                                 std::to_integer<unsigned>(*differing.in2)));
  }

  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override {
    Task<void> test = Filter::write(offset, data, flags);
    const Outcome tested = co_await outcome_of(std::move(test));
    const std::uint64_t length = std::min(data.size(), size() - offset.bytes());
    Task<void> raw = raw_->write(offset, data.first(length), WriteFlags());
    const Outcome other = co_await outcome_of(std::move(raw));
    settle("write", offset, length, tested, other);
  }

  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override {
    Task<void> test = Filter::write_zeroes(range, flags);
    const Outcome tested = co_await outcome_of(std::move(test));
    Task<void> raw = raw_->write_zeroes(range, ZeroFlags{.may_unmap = flags.may_unmap});
    const Outcome other = co_await outcome_of(std::move(raw));
    settle("write of zeros", range.start, range.length, tested, other);
  }

  Task<void> discard(GuestRange) override { co_return; }

  Task<void> flush() override {
    co_await Filter::flush();
    co_await raw_->flush();
  }

  Task<void> truncate(std::uint64_t size, TruncateOptions options) override {
    co_await Filter::truncate(size, options);
    co_await raw_->truncate(size);
  }

  Task<EncodedRun> read_encoded(GuestRange) override { co_return EncodedRun(); }
  Task<bool> write_encoded(GuestOffset, std::span<const EncodedExtent>, WriteFlags) override {
    co_return false;
  }

  Task<void> close() override {
    Task<void> raw = close_raw();
    const Outcome other = co_await outcome_of(std::move(raw));
    co_await Filter::close();
    if (other.error_code != 0) throw Error(other.error_code, other.text);
  }

 private:
  Task<void> close_raw() {
    Task<void> flushing = raw_->flush();
    const Outcome flushed = co_await outcome_of(std::move(flushing));
    co_await raw_->detach();
    if (flushed.error_code != 0) throw Error(flushed.error_code, flushed.text);
  }

  static void settle(std::string_view what, GuestOffset offset, std::uint64_t length,
                     const Outcome& tested, const Outcome& raw) {
    if (tested.error_code == 0 && raw.error_code == 0) return;
    if (tested.error_code == raw.error_code) throw Error(tested.error_code, tested.text);
    const auto text = [](const Outcome& outcome) {
      return outcome.error_code == 0 ? std::string("no error") : outcome.text;
    };
    throw Error(EIO, fmt::format("blkverify: {} of {} bytes at offset {}: the tested image says "
                                 "'{}', raw says '{}'",
                                 what, length, offset.bytes(), text(tested), text(raw)));
  }

  std::unique_ptr<Child> raw_;
};

Task<std::unique_ptr<Driver>> open(OpenContext& context) {
  read_options<qapi::BlockdevOptionsBlkverify>(context);
  std::unique_ptr<Child> raw = co_await context.open_child(std::string("raw"), EdgeRole::storage);
  std::unique_ptr<Child> test =
      co_await context.open_child(std::string("test"), EdgeRole::filtered);
  if (raw->size() < test->size()) {
    throw Error(EINVAL, fmt::format("blkverify: the raw image ({} bytes) is smaller than the "
                                    "tested one ({} bytes)",
                                    raw->size(), test->size()));
  }
  co_return std::make_unique<BlkverifyDriver>(std::move(test), std::move(raw));
}

}  // namespace

const DriverType blkverify_driver = {.name = "blkverify", .kind = DriverKind::filter, .open = open};

}  // namespace vise
