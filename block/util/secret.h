// Objects of type secret: a password or key that others refer to by id.
#pragma once

#include <string>
#include <utility>

#include "vise/objects.h"

namespace vise {

class Secret final : public Object {
 public:
  explicit Secret(std::string bytes) : bytes_(std::move(bytes)) {}
  const std::string& bytes() const { return bytes_; }

  /// The content of a file of at most 64 KiB. Throws Error.
  static std::string read_file(const std::string& path);

 private:
  std::string bytes_;
};

}  // namespace vise
