// What programs do with images beyond reading and writing them: small interfaces that a driver may
// implement beside Driver (found by dynamic_cast), and what a driver type may offer without an
// open image.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "vise/task.h"
#include "vise/value.h"

namespace vise {

class Node;

enum class Repair { none, leaks, all };

struct CheckRequest {
  Repair repair = Repair::none;
  /// Called with one line for people per finding and per repair, without newline. May be empty.
  std::function<void(const std::string&)> on_finding;
};

/// Counts of clusters and findings. After a repair, the *_fixed counts are those of the first pass
/// and all others those of a second pass.
struct CheckResult {
  std::uint64_t corruptions = 0;
  std::uint64_t leaks = 0;
  std::uint64_t check_errors = 0;  // parts of the image that could not be checked
  std::uint64_t corruptions_fixed = 0;
  std::uint64_t leaks_fixed = 0;
  std::uint64_t image_end_offset = 0;  // host bytes; 0: not known
  std::uint64_t total_clusters = 0;
  std::uint64_t allocated_clusters = 0;
  std::uint64_t fragmented_clusters = 0;
  std::uint64_t compressed_clusters = 0;
};

/// A driver whose metadata can be checked and repaired. The image is opened with
/// NodeOptions::purpose = OpenPurpose::check.
class Checkable {
 public:
  virtual ~Checkable() = default;
  /// Throws where the check cannot start or breaks off; findings are not errors.
  virtual Task<CheckResult> check(CheckRequest request) = 0;
};

/// What a new image is to hold; see DriverType::measure.
struct MeasureRequest {
  std::uint64_t size = 0;  // bytes of the new image
  Value::Dict options;     // the -o options by name, values as typed (strings) or JSON
  Node* source = nullptr;  // an open image whose content it takes over; null: empty
};

/// Sizes in bytes of the file(s) of the new image.
struct MeasureResult {
  std::uint64_t required = 0;         // for what is known to be stored at first
  std::uint64_t fully_allocated = 0;  // when every cluster has been written
  std::optional<std::uint64_t> bitmaps;  // to take over the bitmaps of the source
};

}  // namespace vise
