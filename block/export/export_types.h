// Every kind of export there is.
#pragma once

#include <vector>

#include "export/export.h"

namespace vise {

/// For an ExportTable.
std::vector<const ExportType*> export_types();

}  // namespace vise
