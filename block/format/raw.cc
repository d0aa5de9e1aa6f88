// raw: the bytes of the file as they are, or of a window of it (offset, size).
#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <string_view>

#include "format/formats.h"
#include "graph/held.h"
#include "util/driver_options.h"
#include "util/value_reader.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/image_operations.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

constexpr std::uint64_t sector = 512;  // whose content decides about the format

struct Window {
  std::uint64_t offset = 0;           // bytes into the file
  std::optional<std::uint64_t> size;  // bytes; nothing: to the end of the file
};

class RawDriver final : public Driver {
 public:
  /// `probing` guards the first sector (see write()); null: the user said that it is raw.
  RawDriver(std::unique_ptr<Child> file, Window window, DriverTable* probing)
      : file_(std::move(file)), window_(window), probing_(probing) {}

  std::uint64_t size() const override {
    if (window_.size) return *window_.size;
    const std::uint64_t size = file_->size();
    return size > window_.offset ? size - window_.offset : 0;
  }

  Limits limits() const override {
    Limits limits = file_->limits();
    limits.cluster_size = 0;
    limits.can_compress = false;
    if (window_.size) limits.growable = false;
    if (probing_ != nullptr && limits.write_alignment < sector) limits.write_alignment = sector;
    return limits;
  }

  Task<Extent> map(GuestRange range, MapMode) override {
    co_return Extent{.kind = Extent::Kind::data,
                     .length = range.length,
                     .host = host(range.start),
                     .node = &file_->node(),
                     .forwarded = true};
  }

  Task<void> read(GuestOffset offset, IoVec data) override {
    const std::uint64_t valid = size() - offset.bytes();
    if (data.size() > valid) return read_last_unit(offset, data, valid);
    EventPause* pause = file_->node().driver().reached(Event::read_aio);
    if (pause != nullptr) return read_after(pause, offset, data);
    return file_->read(host(offset), data);
  }

  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override {
    if (probing_ != nullptr && offset.bytes() < sector) check_first_sector(data);
    // The last unit of a size that is no multiple of the alignment may reach past it.
    std::uint64_t length = data.size();
    if (!limits().growable) length = std::min(length, size() - offset.bytes());
    EventPause* pause = file_->node().driver().reached(Event::write_aio);
    if (pause != nullptr) return write_after(pause, offset, data.first(length), flags);
    return file_->write(host(offset), data.first(length), flags);
  }

  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override {
    return file_->write_zeroes(HostRange{host(range.start), range.length}, flags);
  }

  Task<void> discard(GuestRange range) override {
    return file_->discard(HostRange{host(range.start), range.length});
  }

  Task<std::uint64_t> copy_out(GuestRange range, CopySink& sink) override {
    return file_->copy_out(HostRange{host(range.start), range.length}, sink);
  }

  // Nobody looks at what is copied.
  Task<bool> copy_in(GuestOffset offset, FileStretch source, WriteFlags flags) override {
    if (probing_ != nullptr && offset.bytes() < sector) co_return false;
    co_return co_await file_->copy_in(host(offset), source, flags);
  }

  Task<void> flush() override {
    co_await file_->event(Event::flush_to_os);
    co_await file_->event(Event::flush_to_disk);
    co_await file_->flush();
  }

  // The alignment is the file's, but writes are padded to it above this node.
  EventPause* reached(Event event) override {
    const bool pads = event >= Event::pwritev_rmw_head && event <= Event::pwritev_rmw_after_tail;
    return pads ? file_->node().driver().reached(event) : nullptr;
  }

  Task<void> truncate(std::uint64_t size, TruncateOptions options) override {
    if (window_.size) throw Error(ENOTSUP, "A raw image with a fixed size cannot be resized");
    const auto end = checked::add(size, window_.offset);
    if (!end) throw Error::system_error(EFBIG);
    return file_->truncate(*end, options);
  }

  Task<DriverInfo> info() override { return file_->node().driver().info(); }

  /// Like a filter: raw has no metadata, so what its users do not claim it does not either.
  Permissions child_permissions(const Child&, Permissions parents) const override {
    return parents;
  }

  std::span<const std::string_view> changeable_options() const override {
    static constexpr std::string_view names[] = {"offset", "size"};
    return names;
  }

  Task<std::function<void()>> prepare_reopen(OpenContext& context) override;

  Task<void> close() override {
    std::exception_ptr failure;
    try {
      co_await file_->flush();
    } catch (...) {
      failure = std::current_exception();
    }
    try {
      co_await file_->detach();
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
    if (failure) std::rethrow_exception(failure);
  }

 private:
  HostOffset host(GuestOffset offset) const { return HostOffset(offset.bytes() + window_.offset); }

  // Requests that a breakpoint holds up; others do without this frame.
  Task<void> read_after(EventPause* pause, GuestOffset offset, IoVec data) {
    co_await EventPoint(pause);
    co_await file_->read(host(offset), data);
  }

  Task<void> write_after(EventPause* pause, GuestOffset offset, ConstIoVec data, WriteFlags flags) {
    co_await EventPoint(pause);
    co_await file_->write(host(offset), data, flags);
  }

  Task<void> read_last_unit(GuestOffset offset, IoVec data, std::uint64_t valid) {
    co_await file_->read(host(offset), data.first(valid));
    data.slice(valid).fill(std::byte{0});
  }

  // An image that nobody called raw must not turn into a format that names other files on the host.
  void check_first_sector(const ConstIoVec& data) const {
    std::byte head[sector] = {};
    data.copy_to(std::span(head).first(std::min<std::uint64_t>(sector, data.size())));
    const DriverType& looks_like = probing_->probe(head);
    if (looks_like.name == raw_driver.name) return;
    throw Error::system_error(EPERM,
                              fmt::format("Writing a '{}' header to an image whose format was "
                                          "guessed to be raw",
                                          looks_like.name));
  }

  std::unique_ptr<Child> file_;
  Window window_;
  DriverTable* probing_;
};

void check_window(const Window& window, const Child& file) {
  const std::uint64_t available = file.size();
  if (window.offset > available) {
    throw Error(EINVAL, fmt::format("Option 'offset' is {}, but the file has only {} bytes",
                                    window.offset, available));
  }
  if (window.size && *window.size > available - window.offset) {
    throw Error(EINVAL,
                fmt::format("Option 'size' is {}, but behind offset {} the file has only {} "
                            "bytes",
                            *window.size, window.offset, available - window.offset));
  }
}

Window read_window(OpenContext& context) {
  const auto given = read_options<qapi::BlockdevOptionsRaw>(context);
  return {.offset = given.offset.value_or(0), .size = given.size};
}

Task<std::function<void()>> RawDriver::prepare_reopen(OpenContext& context) {
  const Window window = read_window(context);
  check_window(window, *file_);
  const std::uint64_t size = window.size.value_or(file_->size() - window.offset);
  const Node& node = context.node();
  if (size != this->size() && !node.cumulative_permissions().shares.has(Permission::resize)) {
    throw Error(EBUSY,
                fmt::format("The size of node '{}', which is in use, would change from {} to "
                            "{} bytes",
                            node.name(), this->size(), size));
  }
  co_return [this, window] { window_ = window; };
}

Task<std::unique_ptr<Driver>> open(OpenContext& context) {
  const Window window = read_window(context);
  std::unique_ptr<Child> file = co_await context.open_child(std::string("file"), EdgeRole::storage);
  check_window(window, *file);
  DriverTable* probing = context.probed() ? &context.context().drivers() : nullptr;
  co_return std::make_unique<RawDriver>(std::move(file), window, probing);
}

Preallocation preallocation_of(const CreateRequest& request) {
  static constexpr std::array<std::string_view, 3> names = {"off", "falloc", "full"};
  static constexpr std::array modes = {Preallocation::off, Preallocation::falloc,
                                       Preallocation::full};
  const Value* value = request.options.find("preallocation");
  if (value == nullptr) return Preallocation::off;
  return modes[ValueReader(*value, "", "preallocation").choice(names)];
}

Task<void> fill(Child& file, std::uint64_t size, Preallocation preallocation) {
  // What was there before must not show through. (A device keeps its size, and its content.)
  try {
    co_await file.truncate(0);
  } catch (const Error& error) {
    if (error.code() != ENOTSUP) throw;
  }
  co_await file.truncate(size, TruncateOptions{.preallocation = preallocation, .exact = false});
}

Task<void> create(CreateRequest& request) {
  const Preallocation preallocation = preallocation_of(request);
  // What others have open must not shrink to nothing below them.
  const Permissions wanted{PermissionSet(Permission::write) | Permission::resize,
                           Permissions::all().without(Permission::resize)};
  std::unique_ptr<Child> held = co_await request.graph.attach(nullptr, std::string("create"),
                                                              EdgeRole::root, request.file, wanted);
  co_await with_child(std::move(held),
                      [&](Child& file) { return fill(file, request.size, preallocation); });
}

constexpr CreateOption create_options[] = {
    {"preallocation", CreateOption::Type::string, "Preallocation mode (off, falloc, full)"},
};

// Every byte has its place from the start.
Task<MeasureResult> measure(MeasureRequest& request) {
  const std::uint64_t size = align_up(request.size, sector);
  co_return MeasureResult{.required = size, .fully_allocated = size, .bitmaps = std::nullopt};
}

}  // namespace

const DriverType raw_driver = {.name = "raw",
                               .kind = DriverKind::format,
                               .open = open,
                               .create = create,
                               .create_options = create_options,
                               .measure = measure};

}  // namespace vise
