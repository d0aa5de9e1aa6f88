// What the guest knows: for each sector, which contents it may find there after a power failure at
// any given moment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "crash/disk.h"

namespace vise::crash {

/// What a sector holds: 0 is zeros, else the number of the request that wrote it. The bytes follow
/// from that and the number of the sector, so that a sector in a wrong place is noticed.
using Content = std::uint64_t;

/// Fills whole sectors, the first of which is number `sector`, with `content`. How well they
/// compress differs with the content, from very well to not at all.
void fill(std::span<std::byte> data, std::uint64_t sector, Content content);

class Model {
 public:
  Model(Clock& clock, std::uint64_t size);  // bytes

  std::uint64_t size() const { return sectors_.size() * sector_size; }

  /// Goes on where `before` was stopped by a power failure at `time`: takes over what was read of
  /// the disk afterwards, which compare() has found to be right.
  void resume(const Model& before, std::uint64_t offset, std::span<const std::byte> data,
              std::uint64_t time);

  /// How a request changes its sectors. possibly: it may as well leave them as they are (discard).
  enum class Effect { surely, possibly };
  using Request = std::size_t;

  /// The guest sends a request for whole sectors.
  Request begin(std::uint64_t offset, std::uint64_t length, Content content, Effect effect);
  /// It has succeeded. A request with FUA is stable from then on.
  void complete(Request request, bool fua);
  /// It has failed: until the next change of a sector, its content may appear there or not.
  void fail(Request request);

  /// A flush has succeeded that was sent at `sent`: what had completed by then is stable from now.
  void complete_flush(std::uint64_t sent);

  /// A number for the content of a new request.
  Content next_content() { return ++contents_; }

  /// Compares what was read after a power failure at the moment `time` (never: the end, and
  /// everything completed is there) with what may be there. Empty, or what is wrong.
  std::string compare(std::uint64_t offset, std::span<const std::byte> data,
                      std::uint64_t time) const;

  /// The same for a read by the running guest that was sent at the moment `sent`.
  std::string compare_live(std::uint64_t offset, std::span<const std::byte> data,
                           std::uint64_t sent) const;

 private:
  struct Change {
    Content content;
    Effect effect;
    std::uint64_t sent;
    std::uint64_t ended = never;      // completed or failed
    std::uint64_t completed = never;  // never, if it has failed
    std::uint64_t stable = never;     // since when
  };
  struct View {
    std::uint64_t sent_before;  // changes sent later are not there yet
    std::uint64_t fixed;        // the changes fixed before this moment are there for sure …
    std::uint64_t Change::* when_fixed;  // … by this measure
  };

  std::string compare(std::uint64_t offset, std::span<const std::byte> data, View view) const;
  static View after_power_failure(std::uint64_t time);
  std::vector<Content> allowed(std::uint64_t sector, const View& view) const;

  Clock& clock_;
  std::vector<Change> changes_;
  std::vector<std::vector<std::uint32_t>> sectors_;  // indices into changes_
  std::vector<Content> initial_;                     // of each sector
  std::size_t first_unstable_ = 0;                   // all changes before it are stable
  Content contents_ = 0;
};

}  // namespace vise::crash
