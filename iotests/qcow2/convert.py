# groups: rw auto
"""Compressed and plain qcow2 images of every cluster size, made by us and read by QEMU, and the
other way round: same content, clean checks, same map."""
from vise_iotest import *


def options(cluster_size, codec):
    return f"cluster_size={cluster_size},compression_type={codec}"


@cases(codec=CODECS, cluster_size=CLUSTER_SIZES)
def ours_compressed_is_read_by_qemu(t, codec, cluster_size):
    size = image_size_for(cluster_size)
    t.write("raw", mixed_data(size, cluster_size, cluster_size))
    t.vise_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options(cluster_size, codec),
               "raw", "ours.qcow2")
    t.sound("ours.qcow2")
    t.reads_as("ours.qcow2", "raw")
    info = t.vise_img("info", "--output=json", "ours.qcow2").json
    t.equal(info["cluster-size"], cluster_size, "cluster size")
    t.equal(info["format-specific"]["data"]["compression-type"], codec, "compression type")
    t.vise_img("convert", "-f", "qcow2", "-O", "raw", "ours.qcow2", "back")
    t.equal(t.digest("back"), t.digest("raw"), "content read back")
    if has("qemu-img"):
        t.equal(t.map_of("vise_img", "ours.qcow2"), t.map_of("qemu_img", "ours.qcow2"), "maps")
        theirs = t.qemu_img("info", "--output=json", "ours.qcow2").json
        t.equal(theirs["format-specific"]["data"]["compression-type"], codec, "QEMU's view")


@cases(codec=CODECS, cluster_size=CLUSTER_SIZES)
def qemus_compressed_is_read_by_us(t, codec, cluster_size):
    size = image_size_for(cluster_size)
    t.write("raw", mixed_data(size, cluster_size, cluster_size + 1))
    t.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options(cluster_size, codec),
               "raw", "theirs.qcow2")
    t.sound("theirs.qcow2")
    t.reads_as("theirs.qcow2", "raw")
    t.equal(t.map_of("vise_img", "theirs.qcow2"), t.map_of("qemu_img", "theirs.qcow2"), "maps")
    for name, arguments in {"check": ("check", "--output=json"),
                            "measure": ("measure", "--output=json", "-O", "qcow2")}.items():
        ours = t.vise_img(*arguments, "theirs.qcow2").json
        t.equal(ours, t.qemu_img(*arguments, "theirs.qcow2").json, name)


@cases(cluster_size=CLUSTER_SIZES)
def plain_images_both_ways(t, cluster_size):
    size = image_size_for(cluster_size)
    t.write("raw", mixed_data(size, cluster_size, cluster_size + 2))
    t.vise_img("convert", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={cluster_size}", "raw",
               "ours.qcow2")
    t.sound("ours.qcow2")
    t.reads_as("ours.qcow2", "raw")
    if has("qemu-img"):
        t.equal(t.map_of("vise_img", "ours.qcow2"), t.map_of("qemu_img", "ours.qcow2"), "maps")
        t.qemu_img("convert", "-f", "qcow2", "-O", "qcow2", "-o", f"cluster_size={cluster_size}",
                   "ours.qcow2", "theirs.qcow2")
        t.sound("theirs.qcow2")
        t.reads_as("theirs.qcow2", "raw")
        t.equal(t.map_of("vise_img", "theirs.qcow2"), t.map_of("qemu_img", "theirs.qcow2"), "maps")


@cases(compressed=[False, True])
def old_version_images_both_ways(t, compressed):
    t.write("raw", mixed_data(2 * MIB + 512, 64 * KIB, 5))
    flags = ["-c"] if compressed else []
    t.vise_img("convert", *flags, "-O", "qcow2", "-o", "compat=0.10", "raw", "ours.qcow2")
    t.sound("ours.qcow2")
    t.reads_as("ours.qcow2", "raw")
    t.equal(t.vise_img("info", "--output=json", "ours.qcow2").json["format-specific"]["data"]["compat"],
            "0.10", "compat")
    t.qemu_img("convert", *flags, "-O", "qcow2", "-o", "compat=0.10", "raw", "theirs.qcow2")
    t.sound("theirs.qcow2")
    t.reads_as("theirs.qcow2", "raw")


@cases(refcount_bits=[1, 2, 4, 8, 16, 32, 64])
def every_refcount_width_holds_compressed_clusters(t, refcount_bits):
    t.write("raw", mixed_data(2 * MIB, 4096, refcount_bits))
    t.vise_img("convert", "-c", "-O", "qcow2", "-o",
               f"cluster_size=4k,refcount_bits={refcount_bits}", "raw", "ours.qcow2")
    t.sound("ours.qcow2")
    t.reads_as("ours.qcow2", "raw")


@cases(codec=CODECS)
def written_by_qemu_io_read_by_us(t, codec):
    t.qemu_img("create", "-f", "qcow2", "-o", options("64k", codec), "a.qcow2", "4M")
    t.qemu_io("-f", "qcow2", "a.qcow2", commands=[
        "write -c -P 1 0 64k", "write -c -P 2 64k 128k", "write -P 3 1M 4k", "write -z 1088k 64k",
        "write -c -P 4 2M 64k", "write -P 5 2100k 512", "discard 64k 64k", "write -c -P 6 4032k 64k"])
    t.qemu_img("convert", "-O", "raw", "a.qcow2", "expected")
    t.reads_as("a.qcow2", "expected")
    t.sound("a.qcow2")
    t.equal(t.map_of("vise_img", "a.qcow2"), t.map_of("qemu_img", "a.qcow2"), "maps")
    t.vise_io("-r", "-f", "qcow2", "a.qcow2", commands=[
        "read -P 1 0 64k", "read -P 2 128k 64k", "read -P 3 1M 4k", "read -P 0 1028k 60k",
        "read -P 4 2M 52k", "read -P 5 2100k 512", "read -P 6 4032k 64k"])


@cases(codec=CODECS)
def written_by_vise_io_read_by_qemu(t, codec):
    t.vise_img("create", "-f", "qcow2", "-o", options("64k", codec), "a.qcow2", "4M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=[
        "write -c -P 1 0 64k", "write -c -P 2 64k 128k", "write -P 3 1M 4k", "write -z 1088k 64k",
        "write -c -P 4 2M 64k", "write -P 5 2100k 512", "write -c -P 6 4032k 64k",
        "write -P 7 30k 4k", "write -c -P 8 64k 64k", "write -z 128k 64k"])
    t.sound("a.qcow2")
    expected = bytearray(4 * MIB)
    for pattern, offset, length in [(1, 0, 64), (8, 64, 64), (3, 1024, 4), (4, 2048, 64),
                                    (6, 4032, 64), (7, 30, 4)]:
        expected[offset * KIB:(offset + length) * KIB] = bytes([pattern]) * (length * KIB)
    expected[2100 * KIB:2100 * KIB + 512] = bytes([5]) * 512
    t.write("expected", bytes(expected))
    t.reads_as("a.qcow2", "expected")
    if has("qemu-img"):
        t.equal(t.map_of("vise_img", "a.qcow2"), t.map_of("qemu_img", "a.qcow2"), "maps")


@cases(codec=CODECS)
def file_sizes_match_qemus(t, codec):
    """The same input gives a file at most 0.1 % larger than QEMU's (checksums), or smaller."""
    t.write("raw", mixed_data(24 * MIB, 100 * KIB, 11))
    for program in ("vise_img", "qemu_img"):
        getattr(t, program)("convert", "-c", "-O", "qcow2", "-o", options("64k", codec), "raw", program)
    ours, theirs = (t.path(name).stat().st_size for name in ("vise_img", "qemu_img"))
    t.check(ours <= theirs * 1.001 + 64 * KIB, f"ours {ours} bytes, QEMU's {theirs}")


@case
def zero_and_incompressible_clusters(t):
    noise = random.Random(1).randbytes(MIB)
    t.write("raw", bytes(MIB) + noise + bytes(MIB))
    t.vise_img("convert", "-c", "-O", "qcow2", "raw", "a.qcow2")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "raw")
    check = t.vise_img("check", "--output=json", "a.qcow2").json
    t.equal(check.get("allocated-clusters"), 16, "clusters allocated")
    t.equal(check.get("compressed-clusters", 0), 0, "compressed clusters")


@case
def an_image_of_no_bytes(t):
    t.write("raw", b"")
    t.vise_img("convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "a.qcow2")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "raw")


@case
def several_sources_are_joined(t):
    first, second = mixed_data(MIB, 64 * KIB, 21), mixed_data(MIB + 512, 64 * KIB, 22)
    t.write("one", first)
    t.write("two", second)
    t.write("both", first + second)
    t.vise_img("convert", "-c", "-f", "raw", "-O", "qcow2", "one", "two", "a.qcow2")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "both")


@case
def convert_into_an_existing_image(t):
    t.write("raw", mixed_data(2 * MIB, 64 * KIB, 23))
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "3M")
    t.vise_img("convert", "-n", "-c", "-f", "raw", "-O", "qcow2", "raw", "a.qcow2")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "raw")
    t.vise_img("create", "-f", "qcow2", "small.qcow2", "1M")
    small = t.vise_img("convert", "-n", "-f", "raw", "-O", "qcow2", "raw", "small.qcow2", code=1)
    t.fails_clearly(small, "small.qcow2|target|output")


main()
