// A check of an image whose disk is written to meanwhile: begin_compressing() and what follows it.
#pragma once

#include "format/qcow2/check_pass.h"
#include "format/qcow2/run_set.h"
#include "vise/image_operations.h"

namespace vise::qcow2 {

/// The pass reads the file, which at the beginning says what memory says. What it finds out about a
/// cluster whose use has changed since may be half old and half new, and does not count; about all
/// others it is as true as if nobody wrote.
struct CheckInUse {
  CheckInUse(Child& file, const Header& header) : pass(file, header, request) {}

  /// Corruptions that the changes do not explain.
  std::uint64_t corruptions() const;

  RunSet changed;  // host clusters
  CheckRequest request;
  CheckPass pass;
};

}  // namespace vise::qcow2
