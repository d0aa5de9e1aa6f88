# groups: rw auto
"""Internal snapshots: made, applied and deleted by us and by qemu-img in turn, among writes of all
kinds; after each step both check the image, and both find in every snapshot what it held."""
import os
import random
import re

from vise_iotest import *

SEED = int(os.environ.get("VISE_IOTEST_SEED", "1"))

SHAPES = {
    "default": {},
    "v2": {"compat": "0.10"},
    "small clusters": {"cluster_size": "512"},
    "one cluster 2M": {"cluster_size": "2M"},
    "extended l2": {"extended_l2": "on", "cluster_size": "16k"},
    "zstd, wide refcounts": {"compression_type": "zstd", "refcount_bits": "64"},
    "narrow refcounts": {"refcount_bits": "4", "cluster_size": "4k"},
}


class Machine:
    """An image, a raw twin that takes the same writes, and a raw copy for each snapshot."""

    def __init__(self, t, shape, seed, backing=False):
        self.t, self.random = t, random.Random(seed)
        options = SHAPES[shape]
        self.cluster = {"512": 512, "4k": 4096, "16k": 16384, "2M": 2 * MIB}.get(
            options.get("cluster_size"), 65536)
        self.size = max(MIB // 2, 6 * self.cluster) + 1536
        self.v2 = "compat" in options
        self.refcount_limit = "refcount_bits" in options and options["refcount_bits"] == "4"
        words = ["-o", ",".join(f"{k}={v}" for k, v in options.items())] if options else []
        if backing:
            t.write("base", mixed_data(self.size, 8192, seed))
            words += ["-b", "base", "-F", "raw"]
        t.vise_img("create", "-q", "-f", "qcow2", *words, "a.qcow2", self.size)
        t.write("now", t.read("base") if backing else bytes(self.size))
        self.snapshots = {}  # name → file
        self.made = 0
        self.log = [f"seed {seed}, {shape}"]

    def program(self, kind):
        chosen = self.random.choice(["vise", "qemu"] if has(f"qemu-{kind}") else ["vise"])
        self.log.append(f"  ({chosen})")
        return chosen

    def write(self):
        commands, twin = [], []
        for _ in range(self.random.randint(1, 8)):
            pattern, kind = self.random.randrange(1, 256), self.random.randrange(8)
            size = self.t.path("now").stat().st_size
            at = self.random.randrange(size // 512) * 512
            length = min(self.random.randint(1, 3 * self.cluster // 512 + 1) * 512, size - at)
            if kind == 0:
                commands.append(f"write -z {at} {length}")
                twin.append(f"write -P 0 {at} {length}")
                continue
            if kind == 1:
                commands.append(f"write -z -u {at} {length}")
                twin.append(f"write -P 0 {at} {length}")
                continue
            if kind < 5:
                at -= at % self.cluster
                length = min(self.cluster, size - at)
                if length == self.cluster:
                    commands.append(f"write -c -P {pattern} {at} {length}")
                    twin.append(f"write -P {pattern} {at} {length}")
                continue
            commands.append(f"write -P {pattern} {at} {length}")
            twin.append(commands[-1])
        if not commands:
            return
        self.log += commands
        # qemu-io refuses compressed writes to clusters that are there already.
        program = "vise" if any("-c" in c for c in commands) else self.program("io")
        run_io = self.t.vise_io if program == "vise" else self.t.qemu_io
        run_io("-f", "qcow2", "a.qcow2", commands=commands)
        self.t.vise_io("-f", "raw", "now", commands=twin)

    def snapshot(self, *words):
        program = self.program("img")
        self.log.append(f"snapshot {words}")
        run_img = self.t.vise_img if program == "vise" else self.t.qemu_img
        run_img("snapshot", *words, "a.qcow2")

    def create(self):
        self.made += 1
        name = f"s{self.made}"
        if self.refcount_limit:
            # Compressed clusters may use the counts up; then nothing may change.
            self.log.append(f"snapshot -c {name}, may fail")
            done = self.t.vise_img("snapshot", "-c", name, "a.qcow2", code=[0, 1])
            if done.code:
                self.t.fails_clearly(done, "4 bits")
                return
        else:
            self.snapshot("-c", name)
        self.snapshots[name] = self.t.write(name, self.t.read("now"))

    def apply(self):
        name = self.random.choice(list(self.snapshots))
        if self.refcount_limit:
            done = self.t.vise_img("snapshot", "-a", name, "a.qcow2", code=[0, 1])
            self.log.append(f"snapshot -a {name}: {done.code}")
            if done.code:
                self.t.fails_clearly(done, "4 bits")
                return
        else:
            self.snapshot("-a", name)
        self.t.write("now", self.t.read(name))

    def delete(self):
        name = self.random.choice(list(self.snapshots))
        self.snapshot("-d", name)
        del self.snapshots[name]

    def resize(self):
        if self.v2 and self.snapshots:
            return
        size = self.random.randint(1, self.size // 512 * 3 // 2) * 512
        self.log.append(f"resize {size}")
        self.t.vise_img("resize", "-q", "--shrink", "-f", "qcow2", "a.qcow2", size)
        with open(self.t.path("now"), "r+b") as twin:
            twin.truncate(size)

    def step(self):
        kind = self.random.randrange(10)
        if kind < 3 and len(self.snapshots) < 5:
            self.create()
        elif kind == 3 and self.snapshots:
            self.apply()
        elif kind in (4, 5) and self.snapshots:
            self.delete()
        elif kind == 6:
            self.resize()
        else:
            self.write()

    def verify(self):
        t = self.t
        try:
            t.sound("a.qcow2")
            t.reads_as("a.qcow2", "now")
            for name, copy in self.snapshots.items():
                t.vise_img("convert", "-l", f"snapshot.name={name}", "-O", "raw", "a.qcow2", "out")
                t.equal(t.digest("out"), t.digest(copy), f"our {name}")
                if has("qemu-img"):
                    t.qemu_img("convert", "-l", name, "-O", "raw", "a.qcow2", "out")
                    # It shows a snapshot at the size that the disk has now.
                    found, held = t.read("out"), t.read(copy)
                    common = min(len(found), len(held))
                    t.check(found[:common] == held[:common], f"qemu-img's {name} differs")
        except Exception as error:
            raise Failure("\n".join(self.log + [str(error)])) from None


@cases(shape=SHAPES)
def any_sequence_keeps_all_snapshots(t, shape):
    machine = Machine(t, shape, SEED)
    for _ in range(int(os.environ.get("VISE_IOTEST_STEPS", "14"))):
        machine.step()
        machine.verify()


@case
def any_sequence_above_a_backing_file(t):
    machine = Machine(t, "default", SEED, backing=True)
    for _ in range(int(os.environ.get("VISE_IOTEST_STEPS", "14"))):
        machine.step()
        machine.verify()


@case
def the_list_is_what_the_tools_know(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "1M")
    t.equal(t.vise_img("snapshot", "a.qcow2").output, "", "list of no snapshots")
    t.vise_img("snapshot", "-c", "first", "a.qcow2")
    t.vise_img("snapshot", "-c", "x" * 300, "a.qcow2")
    lines = t.vise_img("snapshot", "-l", "a.qcow2").stdout.splitlines()
    t.equal(lines[0], "Snapshot list:", "first line")
    t.check(re.fullmatch(r"1       first                 0 B \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
                         r"  0000:00:00\.000          0", lines[2]), f"row: {lines[2]}")
    t.check(lines[3].startswith("2       " + "x" * 255 + " "), f"row: {lines[3]}")
    if has("qemu-img"):
        found = t.qemu_img("info", "--output=json", "a.qcow2").json["snapshots"]
        ours = t.vise_img("info", "--output=json", "a.qcow2").json["snapshots"]
        t.equal(ours, found, "info")


@case
def snapshots_are_found_as_the_command_lines_name_them(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "1M")
    for number, name in enumerate(["2", "b", "b", ""], 1):
        t.vise_io("-f", "qcow2", "a.qcow2", commands=[f"write -P {number} 0 64k"])
        t.vise_img("snapshot", "-c", name, "a.qcow2")

    def first_byte(word):
        t.vise_img("convert", "-l", word, "-O", "raw", "a.qcow2", "out")
        return t.read("out")[0]

    t.equal(first_byte("2"), 2, "an ID comes before a name")
    t.equal(first_byte("snapshot.name=2"), 1, "by name")
    t.equal(first_byte("snapshot.id=3,snapshot.name=b"), 3, "by both")
    t.equal(first_byte("b"), 2, "the first of that name")
    t.vise_img("snapshot", "-d", "", "a.qcow2")
    for word in ["gone", "snapshot.id=9", "snapshot.id=1,snapshot.name=b", "snapshot.x=1"]:
        t.fails_clearly(t.vise_img("convert", "-l", word, "-O", "raw", "a.qcow2", "out", code=1))
    t.fails_clearly(t.vise_img("snapshot", "-d", "1", "a.qcow2", code=1), "1")
    t.fails_clearly(t.vise_img("snapshot", "-a", "gone", "a.qcow2", code=1), "gone")
    t.vise_img("snapshot", "-c", "x", "-l", "a.qcow2", code=1)
    t.vise_img("snapshot", "-U", "-c", "x", "a.qcow2", code=1)
    t.sound("a.qcow2")


@case
def what_cannot_be_done_is_refused_and_changes_nothing(t):
    t.write("a.raw", bytes(65536))
    t.fails_clearly(t.vise_img("snapshot", "-f", "raw", "-c", "x", "a.raw", code=1), "raw")
    t.equal(t.vise_img("snapshot", "-l", "-f", "raw", "a.raw").output, "", "list of a raw image")
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", "one.qcow2", "1M")
    t.vise_io("-f", "qcow2", "one.qcow2", commands=["write -P 1 0 300k"])
    before = t.digest("one.qcow2")
    t.fails_clearly(t.vise_img("snapshot", "-c", "x", "one.qcow2", code=1), "1 bits")
    t.equal(t.digest("one.qcow2"), before, "image")
    t.sound("one.qcow2")


@cases(bits=[1, 16, 64])
def hundreds_of_thousands_of_clusters_take_no_quadratic_step(t, bits):
    """330,000 clusters in 5,000 tables: minutes, were it quadratic."""
    options = f"cluster_size=512,preallocation=metadata,refcount_bits={bits}"
    t.vise_img("create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "160M", timeout=30)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -c -P 5 1M 256k", "write -q -P 6 100M 64k"])
    if bits > 1:
        t.vise_img("snapshot", "-c", "x", "a.qcow2", timeout=30)
        t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 7 90M 1M"], timeout=30)
        t.vise_img("snapshot", "-a", "x", "a.qcow2", timeout=30)
        t.vise_img("snapshot", "-d", "x", "a.qcow2", timeout=30)
    t.vise_img("resize", "-q", "a.qcow2", "200M", timeout=30)
    t.sound("a.qcow2")
    t.vise_img("resize", "-q", "--shrink", "a.qcow2", "1200k", timeout=30)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 5 1M 176k"])
    t.sound("a.qcow2")


main()
