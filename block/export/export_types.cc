#include "export/export_types.h"

#include "export/nbd_service.h"

namespace vise {

std::vector<const ExportType*> export_types() { return {&nbd_export_type}; }

}  // namespace vise
