#include "export/nbd/protocol.h"

#include <cerrno>

namespace vise::nbd {

WireError wire_error(int code) {
  switch (code) {
    case EPERM:
    case EROFS:
      return WireError::eperm;
    case ENOMEM:
      return WireError::enomem;
    case EINVAL:
      return WireError::einval;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return WireError::enospc;
    case EOVERFLOW:
      return WireError::eoverflow;
    case ESHUTDOWN:
      return WireError::eshutdown;
    default:
      return WireError::eio;
  }
}

}  // namespace vise::nbd
