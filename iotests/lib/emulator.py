"""Real guests: QEMU with Debian's kernel, an initramfs made here, and a shell on the serial console.

The kernel is what scripts/setup has put into .cache/guest-kernel, or VISE_GUEST_KERNEL names such a
folder. The guest knows the words of GUEST_SCRIPT; a case gives it lines and waits for each to end.
VISE_GUEST_KVM=1 uses KVM where a probe with a time limit says that it works; default is emulation.
"""
import functools
import json
import os
import re
import stat
import struct
import subprocess
from pathlib import Path

from qmp import Daemon
from vise_iotest import Failure, Process, Skip, installed

MODULES = ["virtio_pci", "virtio_blk"]
PROGRAMS = ["/usr/sbin/mke2fs", "/usr/sbin/e2fsck"]
BOOT_SECONDS = 120  # a few on an idle machine
DISK_SIZE = "512M"
MODES = {"zlib": "new-writes", "zstd": "all-writes"}
THROUGH_NBD = "format=raw,file=nbd+unix:///disk?socket=nbd.sock"

# What /init does: prepare, then run line after line from the console. Output of a line ends with
# "@end STATUS". Files of a guest are made from a seed and a number, so that they differ and compress.
GUEST_SCRIPT = r"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt /sbin /usr/bin /usr/sbin
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/bin LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo 1 > /proc/sys/kernel/printk
while read -r module; do insmod /modules/$module; done < /modules/order
stty -echo -icanon -onlcr < /dev/console

# file NAME SEED KIB: half text, a quarter digits of noise, a quarter zeros; every cluster compresses
file() {
  {
    yes "$2 the same line again, with a number: $1" | head -c $(($3 * 512))
    dd if=/dev/urandom bs=1k count=$(($3 / 8)) 2>/dev/null | xxd -p
    head -c $(($3 * 256)) /dev/zero
  } > "/mnt/$1"
}
# note: remembers what all files of /mnt hold; prints a digest of that
note() {
  (cd /mnt && find . -type f ! -name sums ! -path './scratch/*' | sort | xargs sha256sum) > /tmp/sums
  cp /tmp/sums /mnt/sums
  sync
  sha256sum < /mnt/sums
}
# verify: fails if a file is not what the last note says, or is none of it; prints the note's digest
verify() {
  (cd /mnt && sha256sum -c -s sums) || return 1
  test $(find /mnt -type f ! -name sums ! -path '/mnt/scratch/*' | wc -l) = $(wc -l < /mnt/sums) || return 2
  sha256sum < /mnt/sums
}
# busy: writes, overwrites, syncs and deletes below /mnt/scratch in the background, until `calm`
busy() {
  mkdir -p /mnt/scratch
  rm -f /tmp/calm
  (
    i=0
    until test -e /tmp/calm; do
      file scratch/$((i % 5)) $i 512
      dd if=/dev/urandom of=/mnt/scratch/fixed bs=4k seek=$((i * 7 % 128)) count=3 conv=notrunc,fsync 2>/dev/null
      rm -f /mnt/scratch/$(((i + 2) % 5))
      i=$((i + 1))
      echo $i > /tmp/rounds
    done
    touch /tmp/is-calm
  ) < /dev/null > /dev/null 2>&1 &
}
# calm: ends that, and prints how many rounds there were
calm() {
  touch /tmp/calm
  until test -e /tmp/is-calm; do sleep 0.1; done
  rm /tmp/is-calm
  cat /tmp/rounds
}

echo "@end 0"
while read -r line; do
  eval "$line"
  echo "@end $?"
done
"""


def kernel():
    """The folder with boot/vmlinuz-* and lib/modules/*."""
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("VISE_GUEST_KERNEL") or root / ".cache/guest-kernel")
    if not list(folder.glob("boot/vmlinuz-*")):
        raise Skip(f"no kernel for a guest in {folder}: scripts/setup fetches it")
    return folder


def modules_in_order(folder):
    """The files of MODULES and of what they need, dependencies first."""
    files = {path.stem: path for path in folder.glob("lib/modules/*/kernel/**/*.ko")}
    order = []

    def add(name):
        path = files.get(name)
        if path is None:
            raise Skip(f"the guest's kernel has no module {name}")
        if path not in order:
            found = re.search(rb"\0depends=([\w,]*)\0", path.read_bytes())
            for needed in found.group(1).decode().split(",") if found else []:
                if needed:
                    add(needed)
            order.append(path)

    for name in MODULES:
        add(name)
    return order


def libraries(program):
    """What the dynamic linker loads for it, itself included; nothing for a static program."""
    out = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return re.findall(r"(/\S+) \(0x", out)


class Archive:
    """A cpio archive ("newc"), the form of an initramfs."""

    def __init__(self):
        self.data, self.number, self.folders = bytearray(), 0, set()

    def entry(self, name, mode, content=b"", device=(0, 0)):
        self.number += 1
        name = name.encode() + b"\0"
        fields = [self.number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0]
        self.data += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        self.data += bytes(-len(self.data) % 4) + content
        self.data += bytes(-len(self.data) % 4)

    def file(self, name, content, mode=0o755):
        name = name.lstrip("/")
        for folder in reversed(Path(name).parents):
            if str(folder) != "." and folder not in self.folders:
                self.folders.add(folder)
                self.entry(str(folder), stat.S_IFDIR | 0o755)
        self.entry(name, stat.S_IFREG | mode, content)

    def bytes(self):
        self.entry("TRAILER!!!", 0)
        return bytes(self.data)


@functools.cache
def initramfs():
    archive = Archive()
    archive.file("init", GUEST_SCRIPT.encode())
    contents = {"bin/busybox": installed("busybox")}
    for program in PROGRAMS:
        if not os.path.exists(program):
            raise Skip(f"{program} is not installed")
        contents[program] = program
    for program in list(contents.values()):
        contents.update((library, library) for library in libraries(program))
    for name, source in sorted(contents.items()):
        archive.file(name, Path(source).read_bytes())
    order = modules_in_order(kernel())
    for path in order:
        archive.file(f"modules/{path.name}", path.read_bytes())
    archive.file("modules/order", "".join(f"{path.name}\n" for path in order).encode())
    archive.entry("dev", stat.S_IFDIR | 0o755)
    archive.entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    return archive.bytes()


@functools.cache
def accelerator():
    """"tcg", or "kvm" where that is wanted and a machine without any disk starts with it in time."""
    if not os.environ.get("VISE_GUEST_KVM"):
        return "tcg"
    probe = [installed("qemu-system-x86_64"), "-accel", "kvm", "-display", "none", "-nodefaults",
             "-no-reboot", "-kernel", str(next(kernel().glob("boot/vmlinuz-*"))), "-append", "panic=-1"]
    try:  # without a root file system the kernel panics, and QEMU ends
        done = subprocess.run(probe, capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "tcg"
    return "kvm" if done.returncode == 0 else "tcg"


class Emulator(Process):
    """A guest that has booted. Its disks /dev/vda, /dev/vdb, …: -drive options, whole or without if=."""

    def __init__(self, t, *drives):
        self.t = t
        program = installed("qemu-system-x86_64")
        archive = t.path("initramfs")
        if not archive.exists():
            archive.write_bytes(initramfs())
        command = [program, "-accel", accelerator(), "-m", "256", "-smp", "1", "-nodefaults", "-display", "none",
                   "-serial", "stdio", "-kernel", next(kernel().glob("boot/vmlinuz-*")), "-initrd", archive,
                   "-append", "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off"]
        for drive in drives:
            whole = drive if drive.startswith("if=") else f"if=virtio,discard=unmap,{drive}"
            command += ["-drive", whole]
        super().__init__(command, t.dir, t.env)
        self.wait_for("@end 0", BOOT_SECONDS)

    def start(self, line):
        """Lets the guest's shell do a line; use wait_for() to see what it prints."""
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def line(self, line, seconds=120, status=0):
        """Lets the guest's shell do a line; what it printed. Fails unless it ends with `status`."""
        self.start(line)
        out = self.wait_for("@end ", seconds)
        code = int(self.wait_for("\n", seconds))
        if code != status:
            raise Failure(f"in the guest, status {code} of: {line}\n{out}")
        return out.strip()

    def reboot(self):
        """Restarts the machine; QEMU and its connections stay."""
        self.line("umount /mnt 2>/dev/null || true")
        self.start("reboot -f")
        self.wait_for("@end 0", BOOT_SECONDS)

    def power_off(self):
        """Unmounts, and ends it."""
        self.line("if mount | grep -q /mnt; then umount /mnt; fi")
        self.start("poweroff -f")
        self.process.stdout.read()
        self.kill()


def qcow2(name, **more):
    """Options of the node NAME for the image NAME.qcow2."""
    return {"driver": "qcow2", "node-name": name, "discard": "unmap",
            "file": {"driver": "file", "filename": f"{name}.qcow2"}, **more}


def create(t, codec, name, backing=None):
    """Makes NAME.qcow2, perhaps above BACKING.qcow2."""
    below = ["-F", "qcow2", "-b", f"{backing}.qcow2"] if backing else []
    t.vise_img("create", "-f", "qcow2", "-o", f"compression_type={codec}", *below, f"{name}.qcow2", DISK_SIZE)


def serve_disk(t, codec, name):
    """A storage daemon with NAME.qcow2 as the node `disk`, compressed, exported for THROUGH_NBD."""
    disk = {"driver": "compress", "node-name": "disk", "mode": MODES[codec], "file": qcow2(name)}
    return Daemon(t, "--blockdev", json.dumps(disk), "--nbd-server", "addr.type=unix,addr.path=nbd.sock",
                  "--export", "nbd,id=export,node-name=disk,writable=on")
