# groups: rw auto
"""Writing qcow2 without the filter: random requests of all kinds over several kinds of images, held
against a model in memory and against QEMU."""
from vise_iotest import *


class Model:
    """The commands for vise-io or qemu-io, and what the disk must hold after them."""

    def __init__(self, size, seed, content=None):
        self.data = bytearray(content or size)
        self.size, self.random, self.commands = size, random.Random(seed), []
        self.unknown = []  # (offset, length) that may read as before or as zeroes

    def stretch(self, unit):
        length = self.random.choice([512, 4096, unit, unit, 3 * unit, self.random.randint(1, 4 * unit)])
        offset = self.random.randrange(self.size)
        if self.random.randrange(2):
            offset -= offset % unit
        return offset, min(length, self.size - offset)

    def step(self, unit):
        offset, length = self.stretch(unit)
        kind = self.random.randrange(12)
        if kind < 7:
            pattern = self.random.randrange(256)
            self.commands.append(f"write -q -P {pattern} {offset} {length}")
            self.data[offset:offset + length] = bytes([pattern]) * length
        elif kind < 9:
            self.commands.append(f"write -q -z {self.random.choice(['', '-u '])}{offset} {length}")
            self.data[offset:offset + length] = bytes(length)
        elif kind == 9:
            self.commands.append("flush")
        else:
            # Compressed, onto whatever is there; up to the end of the disk or whole clusters.
            first = offset - offset % unit
            length = min(self.random.choice([1, 1, 3]) * unit, self.size - first)
            pattern = self.random.randrange(256)
            self.commands.append(f"write -q -c -P {pattern} {first} {length}")
            self.data[first:first + length] = bytes([pattern]) * length

    def play(self, steps, unit):
        for _ in range(steps):
            self.step(unit)
        return self.commands


def options(cluster_size, more=""):
    return f"cluster_size={cluster_size}{more}"


@cases(cluster_size=[512, 4096, 65536, 1048576], codec=CODECS)
def random_requests(t, cluster_size, codec):
    size = max(2 * MIB, 6 * cluster_size) + 3 * 512
    t.vise_img("create", "-f", "qcow2", "-o", options(cluster_size, f",compression_type={codec}"), "a.qcow2",
               size)
    model = Model(size, cluster_size)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=model.play(500, cluster_size))
    t.write("expected", bytes(model.data))
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "expected")
    if has("qemu-img"):
        t.equal(t.map_of("vise_img", "a.qcow2"), t.map_of("qemu_img", "a.qcow2"), "maps")


@cases(features=[",compat=0.10", ",lazy_refcounts=on", ",refcount_bits=1", ",refcount_bits=64",
                 ",preallocation=metadata"])
def random_requests_on_other_features(t, features):
    t.vise_img("create", "-f", "qcow2", "-o", options(65536, features), "a.qcow2", "4M")
    model = Model(4 * MIB, 7)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=model.play(400, 65536))
    t.write("expected", bytes(model.data))
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "expected")


@cases(base=["raw", "compressed"])
def random_requests_above_a_backing_image(t, base):
    size, short = 3 * MIB + 512, 2 * MIB + 3 * 512
    t.write("base.raw", mixed_data(short, 64 * KIB, 3))
    form = "raw"
    if base == "compressed":
        t.vise_img("convert", "-c", "-O", "qcow2", "base.raw", "base.qcow2")
        form = "qcow2"
    t.vise_img("create", "-f", "qcow2", "-b", f"base.{form}", "-F", form, "a.qcow2", size)
    model = Model(size, 8, t.read("base.raw") + bytes(size - short))
    t.vise_io("-f", "qcow2", "a.qcow2", commands=model.play(400, 65536))
    t.write("expected", bytes(model.data))
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "expected")


@cases(first=["vise", "qemu"])
def turns_taken_with_qemu_on_one_image(t, first):
    installed("qemu-io")
    t.qemu_img("create", "-f", "qcow2", "a.qcow2", "4M")
    model = Model(4 * MIB, 9)
    order = ["vise", "qemu"] if first == "vise" else ["qemu", "vise"]
    for turn in range(6):
        model.commands = []
        model.play(60, 65536)
        program = order[turn % 2]
        commands = model.commands
        if program == "qemu":  # QEMU refuses a compressed write onto an allocated cluster
            commands = [command.replace("write -q -c", "write -q") for command in commands]
        getattr(t, f"{program}_io")("-f", "qcow2", "a.qcow2", commands=commands)
        t.write("expected", bytes(model.data))
        t.sound("a.qcow2")
        t.reads_as("a.qcow2", "expected")


@case
def discarded_clusters_are_used_again(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "16M")
    for _ in range(6):
        t.vise_io("-d", "unmap", "-f", "qcow2", "a.qcow2",
                  commands=["write -P 5 0 8M", "flush", "discard 0 8M", "flush"])
    t.sound("a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 0 0 8M"])
    size = t.path("a.qcow2").stat().st_size
    t.check(size < 12 * MIB, f"the file has grown to {size} bytes")


@case
def rewritten_compressed_clusters_do_not_bloat_the_file(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "4M")
    t.write("text", mixed_data(MIB, 16 * KIB, 77))
    sizes = []
    for _ in range(10):
        t.vise_io("-f", "qcow2", "a.qcow2", commands=[f"write -c -s text {n}M 1M" for n in range(4)] + ["flush"])
        sizes.append(t.path("a.qcow2").stat().st_size)
    t.sound("a.qcow2")
    t.check(sizes[-1] <= 3 * sizes[0], f"sizes after each pass: {sizes}")


@case
def a_large_sparse_image(t):
    t.vise_img("create", "-f", "qcow2", "-o", "cluster_size=2M", "a.qcow2", "1P")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 1 1023T 64k", "write -P 2 512T 512",
                                                  "read -P 1 1023T 64k", "read -P 0 100T 64k"])
    t.sound("a.qcow2")
    t.qemu_io("-r", "-f", "qcow2", "a.qcow2", commands=["read -P 1 1023T 64k", "read -P 2 512T 512"])


@case
def truncate_grows_and_reads_as_zeroes(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 1 0 1M", "truncate 600M", "length",
                                                  "write -P 2 599M 1M", "read -P 0 1M 1M",
                                                  "read -P 2 599M 1M"])
    t.sound("a.qcow2")
    t.equal(t.vise_img("info", "--output=json", "a.qcow2").json["virtual-size"], 600 * MIB, "size")


main()
