// Locks against other processes that open the same image file, QEMU among them.
#pragma once

#include <string>

#include "vise/driver.h"

namespace vise {

/// The open-file-description locks of one descriptor, on the byte ranges QEMU uses: byte 100 + p
/// says that permission p is used, byte 200 + p that it is not shared. All locks are shared ones;
/// a conflict is seen by asking for the opposite byte. (shared/reference/qcow2.md, 13.9.)
class FileLocks {
 public:
  /// `fd` and what `path` names are borrowed; `path` is for messages.
  FileLocks(int fd, std::string path);

  /// Whether the kernel has this kind of lock for that file.
  static bool supported(int fd);

  /// Makes the locks say what `wanted` says. Throws Error(EAGAIN), with nothing changed, if another
  /// opener of the file does not agree.
  void apply(Permissions wanted);

  /// Takes the same locks on `fd`, another descriptor of the same file, and goes on with that one.
  /// The old ones go when the old descriptor is closed.
  void move_to(int fd);

 private:
  struct Bytes {
    PermissionSet used;      // locked at 100 + p
    PermissionSet unshared;  // locked at 200 + p
  };
  void lock(Bytes bytes, Bytes except);
  void unlock(Bytes bytes, Bytes except) noexcept;
  void check(Bytes wanted) const;

  int fd_;
  std::string path_;
  Bytes held_;
};

}  // namespace vise
