// Objects of type iothread. All requests run on the one event loop: such an object has an id, so
// that others can name it, and nothing else.
#pragma once

#include "vise/objects.h"

namespace vise {

class Iothread final : public Object {};

}  // namespace vise
