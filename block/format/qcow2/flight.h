// The register of requests in flight.
#pragma once

#include <cstdint>
#include <deque>

namespace vise::qcow2 {

/// Tells when all requests that were in flight at some moment have ended.
class FlightRegister {
 public:
  class Flight {
   public:
    explicit Flight(FlightRegister& flights) : flights_(&flights), number_(flights.begin()) {}
    Flight(const Flight&) = delete;
    ~Flight() { flights_->end(number_); }

   private:
    FlightRegister* flights_;
    std::uint64_t number_;
  };

  /// The number the next request will get; all those in flight now have smaller ones.
  std::uint64_t next() const { return next_; }
  /// True if no request with a number below `number` is in flight.
  bool ended_before(std::uint64_t number) const { return oldest_ >= number; }

 private:
  std::uint64_t begin() {
    open_.push_back(true);
    return next_++;
  }
  void end(std::uint64_t number) {
    open_[number - oldest_] = false;
    while (!open_.empty() && !open_.front()) {
      open_.pop_front();
      ++oldest_;
    }
  }
  std::uint64_t next_ = 0;
  std::uint64_t oldest_ = 0;  // the number of open_.front(), or next_
  std::deque<bool> open_;
};

}  // namespace vise::qcow2
