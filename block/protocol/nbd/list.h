// What a server has, for those who ask.
#pragma once

#include <vector>

#include "protocol/nbd/client.h"

namespace vise::nbd {

/// See Client::list.
std::vector<ExportDescription> list_exports(const Target& target);

}  // namespace vise::nbd
