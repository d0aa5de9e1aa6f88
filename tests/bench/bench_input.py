"""What benchmarks work on: an image of this machine's own files."""
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

MIB = 1 << 20


def make_input(target, wanted):
    """An ext4 image of at least so many bytes of this machine's files, every folder's share."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(target)) as staging:
        have, names = 0, []
        for top in ["/usr", "/opt", "/var/lib", "/var/cache"]:
            for folder, folders, files in os.walk(top):
                folders[:] = sorted(name for name in folders
                                    if not os.path.ismount(os.path.join(folder, name)))
                for name in sorted(files):
                    path = os.path.join(folder, name)
                    if os.path.islink(path) or not os.path.isfile(path):
                        continue
                    size = os.path.getsize(path)
                    if 0 < size < 64 * MIB and os.access(path, os.R_OK):
                        names.append((path, size))
        total = sum(size for _, size in names)
        share, turn = min(1, wanted * 1.02 / max(total, 1)), 0.0
        for path, size in names:
            turn += share
            if turn < 0.999999:
                continue
            turn -= 1
            copy = staging + path
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            shutil.copyfile(path, copy)
            have += size
        copies = 0
        while have < wanted and have > 0:  # a small machine: the same files again, changed a bit
            copies += 1
            for path, size in names:
                if have >= wanted:
                    break
                copy = f"{staging}/again{copies}{path}"
                os.makedirs(os.path.dirname(copy), exist_ok=True)
                data = Path(path).read_bytes()
                Path(copy).write_bytes(data[copies:] + data[:copies])
                have += size
        print(f"making an image of {have // MIB} MiB of files", flush=True)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-d", staging, target,
                        f"{have * 120 // 100 // MIB + 64}M"], check=True, capture_output=True)
