#include "export/export_types.h"

namespace vise {

std::vector<const ExportType*> export_types() { return {}; }

}  // namespace vise
