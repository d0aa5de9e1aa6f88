// What goes somewhere else in the image file together with every word that names it.
#pragma once

#include <cstdint>
#include <vector>

#include "format/qcow2/qcow2.h"

namespace vise::qcow2 {

struct Qcow2::Relocation {
  HostRange old;            // whole clusters, or what may be read of a compressed cluster
  bool compressed = false;  // the latter
  std::uint64_t references = 1;
  bool anywhere = false;       // not only further to the front
  std::vector<NewName> names;  // each place once, with the word that is there now
};

}  // namespace vise::qcow2
