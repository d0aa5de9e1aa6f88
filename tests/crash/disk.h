// A disk in memory that remembers every write, so that what it would hold after a power failure at
// any moment can be made up later (replay.h). Also fails requests on demand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "crash/image.h"
#include "vise/driver.h"

namespace vise::crash {

/// Numbers the events of one run, those of the guest and those of the host, in one sequence.
class Clock {
 public:
  std::uint64_t tick() { return ++now_; }
  std::uint64_t now() const { return now_; }

 private:
  std::uint64_t now_ = 0;
};

inline constexpr std::uint64_t never = UINT64_MAX;
inline constexpr std::uint64_t sector_size = 512;  // bytes; what a disk writes as a whole

/// One request that changes the disk.
struct HostEvent {
  enum class Kind { write, zero, discard, truncate, flush };
  Kind kind = Kind::write;
  std::uint64_t offset = 0;     // bytes; truncate: the new size
  std::uint64_t length = 0;     // bytes
  std::vector<std::byte> data;  // write
  std::uint64_t issued = 0;
  std::uint64_t completed = never;            // or failed; never: still under way at the end
  std::uint64_t arrived = ~std::uint64_t{0};  // failed: sector i is there if bit i % 64 is set
};

/// Does to `image` what has arrived of `event`. Where `keep_sector(i)` says false, the i-th sector
/// it touches stays as it was; discarded sectors become zeros.
template <class F>
void apply(const HostEvent& event, Image& image, F keep_sector) {
  if (event.kind == HostEvent::Kind::flush) return;
  if (event.kind == HostEvent::Kind::truncate) {
    if ((event.arrived & 1) != 0 && keep_sector(std::uint64_t{0})) image.resize(event.offset);
    return;
  }
  std::uint64_t index = 0;
  for (std::uint64_t done = 0; done < event.length; ++index) {
    const std::uint64_t offset = event.offset + done;
    const std::uint64_t length = std::min(sector_size - offset % sector_size, event.length - done);
    if (((event.arrived >> index % 64) & 1) != 0 && keep_sector(index)) {
      if (event.kind == HostEvent::Kind::write) {
        image.write(offset, std::span(event.data).subspan(done, length));
      } else if (event.kind == HostEvent::Kind::zero || offset < image.size()) {
        image.write_zeroes(offset, event.kind == HostEvent::Kind::zero
                                       ? length
                                       : std::min(length, image.size() - offset));
      }
    }
    done += length;
  }
}

class Disk {
 public:
  /// Which request fails with EIO. Writes, zeroes, discards and truncations count as writes.
  struct Fault {
    enum class Target { write, flush };
    Target target = Target::write;
    std::uint64_t number = 1;  // 1 is the first from now on
    bool all_later = false;    // those after it fail as well
  };
  struct Options {
    std::uint64_t seed = 1;
    unsigned usual_delay = 0;  // rounds of the event loop at most; a few requests take far longer
    std::uint32_t alignment = 1;      // of requests, in bytes
    bool forget_flushes = false;      // a bad disk: flushes are no barriers, and not in the log
    std::uint64_t room = UINT64_MAX;  // bytes; what would make it larger fails with ENOSPC
  };

  Disk(Clock& clock, Image image, Options options);

  const Image& image() const { return image_; }
  const std::vector<HostEvent>& log() const { return log_; }  // in order of issue
  const Options& options() const { return options_; }
  void set_fault(std::optional<Fault> fault);
  bool fault_happened() const { return fault_happened_; }

  Task<void> read(std::uint64_t offset, IoVec data);
  /// Performs and records the event.
  Task<void> change(HostEvent event);

 private:
  Task<void> delay(unsigned one_slow_in);
  bool must_fail(HostEvent::Kind kind);

  Clock& clock_;
  Image image_;
  Options options_;
  std::vector<HostEvent> log_;
  std::mt19937_64 random_;
  std::optional<Fault> fault_;
  bool fault_happened_ = false;
};

/// The driver "crash-disk": a protocol node over `disk`, to be added to a DriverTable.
struct DiskDriverType : DriverType {
  explicit DiskDriverType();
  Disk* disk = nullptr;  // of the nodes opened from now on
};

}  // namespace vise::crash
