# groups: rw auto
"""Writing through the compress filter: overwrites, small writes, both modes, verified by QEMU."""
from vise_iotest import *

MODES = ["new-writes", "all-writes"]


def options(image, mode=None, **more):
    words = ["driver=compress"] + ([f"mode={mode}"] if mode else [])
    words += [f"{key.replace('_', '-')}={value}" for key, value in more.items()]
    return ",".join(words + ["file.driver=qcow2", f"file.file.filename={image}"])


def through(t, image, commands, mode=None, **more):
    return t.vise_io("--image-opts", options(image, mode, **more), commands=commands)


def create(t, codec, size, cluster_size="64k"):
    t.vise_img("create", "-f", "qcow2", "-o",
               f"compression_type={codec},cluster_size={cluster_size}", "a.qcow2", size)


def verify(t, expected):
    t.write("expected", bytes(expected))
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "expected")
    return t.vise_img("check", "--output=json", "a.qcow2").json


@cases(codec=CODECS, mode=MODES)
def new_clusters_are_compressed(t, codec, mode):
    create(t, codec, "4M")
    through(t, "a.qcow2", ["write -P 1 0 64k", "write -P 2 64k 1M", "write -P 3 3M 4k"], mode)
    expected = bytearray(4 * MIB)
    expected[0:64 * KIB] = bytes([1]) * (64 * KIB)
    expected[64 * KIB:MIB + 64 * KIB] = bytes([2]) * MIB
    expected[3 * MIB:3 * MIB + 4096] = bytes([3]) * 4096
    found = verify(t, expected)
    t.equal(found["compressed-clusters"], 18, "compressed clusters")
    t.equal(found["allocated-clusters"], 18, "allocated clusters")


@cases(codec=CODECS, mode=MODES)
def every_kind_of_cluster_can_be_overwritten(t, codec, mode):
    create(t, codec, "1M")
    t.vise_io("-f", "qcow2", "a.qcow2",
              commands=["write -P 1 0 64k", "write -c -P 2 64k 64k", "write -z 128k 64k",
                        "write -z -u 192k 64k"])
    through(t, "a.qcow2", [f"write -P {10 + n} {n * 64}k 64k" for n in range(5)] +
            [f"write -P {20 + n} {n * 64 + 16}k 4k" for n in range(5)] +
            [f"write -P {30 + n} {n * 64}k 64k" for n in range(2)], mode)
    expected = bytearray(MIB)
    for cluster in range(5):
        start = cluster * 64 * KIB
        expected[start:start + 64 * KIB] = bytes([10 + cluster]) * (64 * KIB)
        expected[start + 16 * KIB:start + 20 * KIB] = bytes([20 + cluster]) * (4 * KIB)
        if cluster < 2:
            expected[start:start + 64 * KIB] = bytes([30 + cluster]) * (64 * KIB)
    found = verify(t, expected)
    if mode == "all-writes":
        t.equal(found["compressed-clusters"], 5, "compressed clusters")


@case
def overwrites_become_normal_clusters_by_default(t):
    create(t, "zlib", "1M")
    through(t, "a.qcow2", ["write -P 1 0 128k"])
    t.equal(t.vise_img("check", "--output=json", "a.qcow2").json["compressed-clusters"], 2, "before")
    through(t, "a.qcow2", ["write -P 2 0 64k"])
    found = t.vise_img("check", "--output=json", "a.qcow2").json
    t.equal((found["allocated-clusters"], found["compressed-clusters"]), (2, 1), "after")


@cases(codec=CODECS, mode=MODES, cluster_size=["4k", "64k", "1M"])
def four_kilobyte_sequential_writes(t, codec, mode, cluster_size):
    size = 3 * MIB + 512
    create(t, codec, size, cluster_size)
    expected = bytearray(size)
    commands = []
    for offset in range(0, 2 * MIB + 300 * KIB, 4096):
        pattern = 1 + offset // 4096 % 255
        commands.append(f"write -q -P {pattern} {offset} 4096")
        expected[offset:offset + 4096] = bytes([pattern]) * 4096
    through(t, "a.qcow2", commands + ["flush", f"read -P 1 0 4096"], mode)
    found = verify(t, expected)
    if mode == "all-writes":
        t.equal(found["compressed-clusters"], found["allocated-clusters"], "compressed clusters")
        # The write buffer completes each cluster before it is stored, so that none is stored twice:
        # header, refcount table and block, L1 table, the L2 tables (two with 4k), and what
        # 576, 37 and 3 clusters of a pattern compress to.
        clusters = {"4k": 6 + 5, "64k": 5 + 1, "1M": 5 + 1}[cluster_size]
        unit = {"4k": 4 * KIB, "64k": 64 * KIB, "1M": MIB}[cluster_size]
        t.check(found["image-end-offset"] <= clusters * unit,
                f"the image has bloated to {found['image-end-offset'] / unit} clusters")


@cases(codec=CODECS, mode=MODES, cluster_size=["4k", "64k"])
def four_kilobyte_random_writes(t, codec, mode, cluster_size):
    size = 4 * MIB
    create(t, codec, size, cluster_size)
    noise = random.Random(9)
    t.write("noise", noise.randbytes(4096))
    t.write("text", (b"some text that compresses well, " * 128)[:4096])
    expected = bytearray(size)
    commands = []
    for _ in range(1200):
        offset = noise.randrange(size // 4096) * 4096
        kind = noise.randrange(5)
        if kind == 0:
            commands.append(f"write -q -z {offset} 4096")
            expected[offset:offset + 4096] = bytes(4096)
        elif kind in (1, 2):
            name = ("noise", "text")[kind - 1]
            commands.append(f"write -q -s {name} {offset} 4096")
            expected[offset:offset + 4096] = t.read(name)
        else:
            pattern = noise.randrange(256)
            commands.append(f"write -q -P {pattern} {offset} 4096")
            expected[offset:offset + 4096] = bytes([pattern]) * 4096
        if noise.randrange(100) == 0:
            commands.append("flush")
    through(t, "a.qcow2", commands, mode)
    verify(t, expected)
    t.check(t.allocated("a.qcow2") < 2 * size, f"the image has bloated to {t.allocated('a.qcow2')}")


@cases(mode=MODES)
def unaligned_requests_of_any_size(t, mode):
    size = 2 * MIB + 3 * 512
    create(t, "zstd", size)
    source = random.Random(4)
    expected = bytearray(size)
    commands = []
    for _ in range(300):
        offset = source.randrange(size)
        length = min(source.choice([1, 511, 512, 513, 4096, 65536, 65537, 200000]), size - offset)
        if source.randrange(4):
            pattern = source.randrange(256)
            commands.append(f"write -q -P {pattern} {offset} {length}")
            expected[offset:offset + length] = bytes([pattern]) * length
        else:
            commands.append(f"read -q {offset} {length}")
    through(t, "a.qcow2", commands, mode)
    verify(t, expected)


@cases(mode=MODES)
def requests_at_the_same_time(t, mode):
    """Overlapping halves of clusters in flight together must not lose one another's bytes."""
    create(t, "zlib", "4M")
    expected = bytearray(4 * MIB)
    commands = []
    order = list(range(0, 2 * MIB, 16 * KIB))
    random.Random(5).shuffle(order)
    for offset in order:
        pattern = 1 + offset // (16 * KIB) % 250
        commands.append(f"aio_write -q -P {pattern} {offset} 16k")
        expected[offset:offset + 16 * KIB] = bytes([pattern]) * (16 * KIB)
    through(t, "a.qcow2", commands + ["aio_flush", "flush"], mode)
    verify(t, expected)


@cases(size=[512, 3 * 512, 64 * KIB + 512, MIB + 7 * 512])
def a_size_that_is_not_a_multiple_of_the_cluster_size(t, size):
    create(t, "zlib", size)
    expected = bytearray(bytes([5]) * size)
    through(t, "a.qcow2", [f"write -P 5 0 {size}", f"write -P 6 {size - 512} 512"])
    expected[size - 512:] = bytes([6]) * 512
    verify(t, expected)


@case
def reading_through_the_filter(t):
    t.write("raw", mixed_data(2 * MIB, 64 * KIB, 6))
    t.vise_img("convert", "-c", "-O", "qcow2", "raw", "a.qcow2")
    t.vise_img("convert", "--image-opts", "-O", "raw", options("a.qcow2"), "back")
    t.equal(t.digest("back"), t.digest("raw"), "content")
    t.vise_img("compare", "--image-opts", options("a.qcow2"), "driver=raw,file.filename=raw")
    t.vise_io("-r", "--image-opts", options("a.qcow2"), commands=["read 1000 5000"])


@cases(codec=CODECS)
def convert_into_the_filter(t, codec):
    """The demo's way: the target of `convert -n` is the filter above a new image."""
    t.write("raw", mixed_data(12 * MIB, 64 * KIB, 7))
    create(t, codec, 12 * MIB)
    progress = t.vise_img("convert", "-p", "-n", "-f", "raw", "--target-image-opts", "raw",
                          options("a.qcow2"))
    t.check("(100.00/100%)" in progress.stdout, progress)
    found = verify(t, t.read("raw"))
    t.check(found.get("compressed-clusters", 0) > 50, f"not compressed: {found}")


@case
def convert_into_the_filter_equals_convert_c(t):
    t.write("raw", mixed_data(12 * MIB, 64 * KIB, 8))
    create(t, "zlib", 12 * MIB)
    t.vise_img("convert", "-n", "-f", "raw", "--target-image-opts", "raw", options("a.qcow2"))
    t.vise_img("convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "b.qcow2")
    ours, theirs = t.path("a.qcow2").stat().st_size, t.path("b.qcow2").stat().st_size
    t.check(abs(ours - theirs) <= 128 * KIB, f"{ours} bytes through the filter, {theirs} by -c")


@case
def truncate_and_write_zeroes_pass_through(t):
    create(t, "zlib", "1M")
    through(t, "a.qcow2", ["write -P 1 0 1M", "truncate 2M", "write -P 2 1M 1M", "write -z 64k 128k",
                           "discard 512k 64k", "read -P 0 64k 128k"])
    expected = bytearray(bytes([1]) * MIB + bytes([2]) * MIB)
    expected[64 * KIB:192 * KIB] = bytes(128 * KIB)
    t.sound("a.qcow2")
    got = t.vise_img("convert", "-O", "raw", "a.qcow2", "back") and t.read("back")
    t.equal(got[:512 * KIB], bytes(expected[:512 * KIB]), "content")
    t.equal(got[576 * KIB:], bytes(expected[576 * KIB:]), "content")


@cases(program=["qemu", "vise"])
def written_through_the_filter_while_a_backing_file_exists(t, program):
    t.write("raw", mixed_data(2 * MIB, 64 * KIB, 10))
    getattr(t, f"{program}_img")("convert", "-c", "-O", "qcow2", "raw", "base.qcow2")
    getattr(t, f"{program}_img")("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "a.qcow2")
    expected = bytearray(t.read("raw"))
    commands = []
    for offset in range(0, 2 * MIB, 48 * KIB):
        commands.append(f"write -P 77 {offset} 4096")
        expected[offset:offset + 4096] = bytes([77]) * 4096
    through(t, "a.qcow2", commands)
    verify(t, expected)


main()
