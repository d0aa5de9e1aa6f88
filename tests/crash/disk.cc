// Requests take effect when they complete, after a delay of random length, so that requests in
// flight overtake each other.
#include "crash/disk.h"

#include <cerrno>
#include <utility>

#include "vise/error.h"
#include "vise/event_loop.h"
#include "vise/graph.h"

namespace vise::crash {

Disk::Disk(Clock& clock, Image image, Options options)
    : clock_(clock), image_(std::move(image)), options_(options), random_(options.seed) {}

void Disk::set_fault(std::optional<Fault> fault) {
  fault_ = fault;
  fault_happened_ = false;
}

Task<void> Disk::delay(unsigned one_slow_in) {
  if (options_.usual_delay == 0) co_return;
  std::uint64_t rounds = random_() % (options_.usual_delay + 1);
  if (random_() % one_slow_in == 0) rounds *= 20;  // long enough for others to do a lot meanwhile
  for (std::uint64_t i = 0; i < rounds; ++i) co_await EventLoop::current().yield();
}

bool Disk::must_fail(HostEvent::Kind kind) {
  if (!fault_) return false;
  const bool is_flush = kind == HostEvent::Kind::flush;
  if (is_flush != (fault_->target == Fault::Target::flush)) return false;
  if (fault_->number > 1) {
    --fault_->number;
    return false;
  }
  fault_happened_ = true;
  if (!fault_->all_later) fault_.reset();
  return true;
}

Task<void> Disk::read(std::uint64_t offset, IoVec data) {
  co_await delay(5);
  data.for_each([&](std::span<std::byte> part) {
    image_.read(offset, part);
    offset += part.size();
  });
}

Task<void> Disk::change(HostEvent event) {
  const bool grows = event.kind != HostEvent::Kind::flush && event.kind != HostEvent::Kind::discard;
  if (grows && (event.offset > options_.room || event.length > options_.room - event.offset)) {
    throw Error::system_error(ENOSPC);
  }
  const bool fails = must_fail(event.kind);
  event.issued = clock_.tick();
  const std::size_t index = log_.size();
  const bool recorded = event.kind != HostEvent::Kind::flush || !options_.forget_flushes;
  if (recorded) log_.push_back(std::move(event));
  co_await delay(20);
  if (!recorded) co_return;
  if (fails) log_[index].arrived = random_();
  apply(log_[index], image_, [](std::uint64_t) { return true; });
  log_[index].completed =
      fails && log_[index].kind == HostEvent::Kind::flush ? never : clock_.tick();
  if (fails) throw Error::system_error(EIO);
}

namespace {

class DiskDriver final : public Driver {
 public:
  DiskDriver(Node& node, Disk& disk) : node_(node), disk_(disk) {}

  std::uint64_t size() const override { return disk_.image().size(); }
  Limits limits() const override {
    return {.request_alignment = disk_.options().alignment,
            .can_zero = true,
            .can_discard = true,
            .growable = true};
  }
  Task<Extent> map(GuestRange range, MapMode) override {
    co_return Extent{.kind = Extent::Kind::data,
                     .length = range.length,
                     .host = HostOffset(range.start.bytes()),
                     .node = &node_};
  }
  Task<void> read(GuestOffset offset, IoVec data) override {
    return disk_.read(offset.bytes(), data);
  }
  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags) override {
    HostEvent event;
    event.offset = offset.bytes();
    event.length = data.size();
    event.data.resize(data.size());
    data.copy_to(event.data);
    return disk_.change(std::move(event));
  }
  Task<void> write_zeroes(GuestRange range, ZeroFlags) override {
    return change(HostEvent::Kind::zero, range);
  }
  Task<void> discard(GuestRange range) override { return change(HostEvent::Kind::discard, range); }
  Task<void> flush() override { return change(HostEvent::Kind::flush, {}); }
  Task<void> truncate(std::uint64_t size, TruncateOptions options) override {
    if (options.preallocation != Preallocation::off) {
      throw Error(ENOTSUP, "a crash-disk has no preallocation");
    }
    if (!options.allow_shrink && size < this->size()) throw Error(EINVAL, "would shrink");
    return change(HostEvent::Kind::truncate, {GuestOffset(size), 0});
  }
  Task<void> reopen(bool) override { co_return; }
  Task<void> close() override { co_return; }

 private:
  Task<void> change(HostEvent::Kind kind, GuestRange range) {
    HostEvent event;
    event.kind = kind;
    event.offset = range.start.bytes();
    event.length = range.length;
    return disk_.change(std::move(event));
  }

  Node& node_;
  Disk& disk_;
};

Task<std::unique_ptr<Driver>> open_disk(OpenContext& context) {
  const auto& type = static_cast<const DiskDriverType&>(context.node().type());
  co_return std::make_unique<DiskDriver>(context.node(), *type.disk);
}

}  // namespace

DiskDriverType::DiskDriverType()
    : DriverType{.name = "crash-disk", .kind = DriverKind::protocol, .open = open_disk} {}

}  // namespace vise::crash
