// A set of cluster numbers that come in long runs.
#pragma once

#include <cstdint>
#include <iterator>
#include <map>
#include <utility>

namespace vise::qcow2 {

class RunSet {
 public:
  bool empty() const { return runs_.empty(); }
  void clear() { runs_.clear(); }

  bool contains(std::uint64_t value) const {
    const auto next = runs_.upper_bound(value);
    return next != runs_.begin() && value < std::prev(next)->second;
  }

  void add(std::uint64_t value) {
    if (contains(value)) return;
    auto next = runs_.upper_bound(value);
    std::uint64_t first = value;
    std::uint64_t end = value + 1;
    if (next != runs_.begin() && std::prev(next)->second == value) {
      first = std::prev(next)->first;
      runs_.erase(std::prev(next));
    }
    if (next != runs_.end() && next->first == end) {
      end = next->second;
      runs_.erase(next);
    }
    runs_.emplace(first, end);
  }

  void remove(std::uint64_t value) {
    if (!contains(value)) return;
    const auto run = std::prev(runs_.upper_bound(value));
    const auto [first, end] = *run;
    runs_.erase(run);
    if (first < value) runs_.emplace(first, value);
    if (value + 1 < end) runs_.emplace(value + 1, end);
  }

  /// Removes all values from `first` on.
  void cut(std::uint64_t first) {
    auto run = runs_.lower_bound(first);
    if (run != runs_.begin() && std::prev(run)->second > first) std::prev(run)->second = first;
    runs_.erase(run, runs_.end());
  }

  /// Removes and returns the run with the smallest numbers: [first, end). Not empty.
  std::pair<std::uint64_t, std::uint64_t> take_first() {
    const auto run = *runs_.begin();
    runs_.erase(runs_.begin());
    return run;
  }
  /// [first, end) must not overlap the set.
  void add_run(std::uint64_t first, std::uint64_t end) { runs_.emplace(first, end); }

 private:
  std::map<std::uint64_t, std::uint64_t> runs_;  // first → end
};

}  // namespace vise::qcow2
