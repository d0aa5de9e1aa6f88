"""What tests of compressing in place share: how short a file is, and killing `vise-img compress`."""
import os
import random
import shutil
import signal
import subprocess
import time

from vise_iotest import KIB, MIB, Failure, has, mixed_data


def size_of(t, name):
    return os.path.getsize(t.path(name))


def clusters_in_use(t, name):
    """Clusters of the file that its refcounts say are in use, and how many it has."""
    data = t.read(name)
    bits = int.from_bytes(data[20:24], "big")
    table = int.from_bytes(data[48:56], "big")
    size = int.from_bytes(data[56:60], "big") << bits
    width = 1 << (int.from_bytes(data[96:100], "big") if data[7] >= 3 else 4)
    used = 0
    for at in range(table, table + size, 8):
        block = int.from_bytes(data[at:at + 8], "big") & ~511
        if not block:
            continue
        counts = data[block:block + (1 << bits)]
        if width >= 8:
            step = width // 8
            used += sum(any(counts[i:i + step]) for i in range(0, len(counts), step))
        else:
            mask = (1 << width) - 1
            used += sum((byte >> shift & mask) != 0 for byte in counts for shift in range(0, 8, width))
    return used, -(-len(data) >> bits)


def as_short_as_can_be(t, name, more=2):
    """Closing may have written a table anew, at the end."""
    used, there = clusters_in_use(t, name)
    t.check(there <= used + more, f"{there} clusters, of which {used} are in use")


def wait_for_locks(t, image):
    """The kernel closes the files of a killed process that used io_uring a bit later."""
    for _ in range(500):
        result = t.vise_io("-f", "qcow2", image, commands=["length"], code=None)
        if result.code == 0:
            return
        t.check("lock" in result.stderr, result)
        time.sleep(0.01)
    raise Failure("the image is still locked 5 s after the process was killed")


def kill_at_moments(t, image, moments, check):
    """Starts `compress` again and again, kills it `moments` times, and lets `check` look between."""
    shutil.copy(t.path(image), t.path("start.qcow2"))
    start = time.monotonic()
    t.vise_img("compress", "-q", "--compact", image)
    duration = time.monotonic() - start
    final = size_of(t, image)
    shutil.copy(t.path("start.qcow2"), t.path(image))
    random_moment = random.Random(1)
    finished = killed = 0
    while killed < moments:
        process = subprocess.Popen([str(t.tools / "vise-img"), "compress", "-q", "--compact", image],
                                   cwd=t.dir, env=t.env)
        try:
            process.wait(random_moment.uniform(0, duration))
        except subprocess.TimeoutExpired:
            process.kill()
        code = process.wait()
        wait_for_locks(t, image)
        t.check(code in (0, -signal.SIGKILL), f"exit status {code}")
        killed += code != 0
        if code == 0 or killed % 4 == 0:
            t.vise_img("check", image, code=(0, 3))
            check()
        if killed % 20 == 0 and has("qemu-img"):
            t.qemu_img("check", image, code=(0, 3))
        if code == 0:
            finished += 1
            t.check(size_of(t, image) <= final * 1.1 + 64 * KIB,
                    f"{size_of(t, image)} bytes after interruptions, {final} without")
            shutil.copy(t.path("start.qcow2"), t.path(image))
            duration *= 0.8  # the machine is faster than it was
    t.vise_img("compress", "-q", "--compact", image)
    t.sound(image)
    check()


class Scattered:
    """An image that QEMU makes at a.qcow2, with snapshots `names`, with state, that share clusters
    of every kind with each other and the disk. All lies behind what only a snapshot held that was
    deleted last of all."""

    def __init__(self, t, form, gone=10 * MIB, held=0):
        self.t = t
        narrow = "bits=2" in form or "bits=4" in form
        t.qemu_img("create", "-q", "-f", "qcow2", "-o", form, "a.qcow2", str(33 * MIB + gone + held))
        t.write("noise", random.Random(1).randbytes(gone + held))
        self.qemu_io(f"write -q -s noise 2M {gone}")
        t.qemu_img("snapshot", "-c", "gone", "a.qcow2")
        self.qemu_io(f"discard -q 0 {33 * MIB + gone}")
        if held:
            self.qemu_io(f"write -q -s noise {33 * MIB + gone} {held}")
        self.names = ["one"] if "bits=2" in form else ["one", "two"]
        for number, name in enumerate(self.names):
            t.write("new", mixed_data(3 * MIB, 64 * KIB, number))
            self.qemu_io(f"write -q -s new {number * 2 + 1}M 3M", f"write -q -P 5 {number * 9 + 20}M 1M",
                         f"write -q -z {number * 2 + 2}M 300k", f"write -q -b -P {number + 7} 0 400k")
            if not narrow:
                self.qemu_io(f"write -q -c -P 9 {number * 2 + 28}M 2M")
            t.qemu_img("snapshot", "-c", name, "a.qcow2")
        self.qemu_io("write -q -P 6 3000k 100k", "write -q -P 7 30M 70k")
        t.qemu_img("snapshot", "-d", "gone", "a.qcow2")

    def qemu_io(self, *commands):
        self.t.qemu_io("-d", "unmap", "-f", "qcow2", "a.qcow2", commands=list(commands))

    def held(self):
        """Digests of what the disk and its snapshots hold, says qemu-img."""
        digests = []
        for name in [None, *self.names]:
            which = ["-l", f"snapshot.name={name}"] if name else []
            self.t.qemu_img("convert", *which, "-O", "raw", "a.qcow2", "held")
            digests.append(self.t.digest("held"))
        return digests
