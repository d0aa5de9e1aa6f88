# groups: rw auto
"""Compressed clusters that travel as they are stored: same content, sound images, same bytes."""
from vise_iotest import *


def options(cluster_size, codec, *more):
    return ",".join([f"cluster_size={cluster_size}", f"compression_type={codec}", *more])


def convert(t, source, target, cluster_size, codec, *arguments, more=()):
    t.vise_img("convert", "-c", "-O", "qcow2", "-o", options(cluster_size, codec, *more),
               *arguments, source, target)


@cases(codec=CODECS, cluster_size=[512, 4 * KIB, 64 * KIB, 2 * MIB], program=["vise", "qemu"])
def what_either_compressed_is_copied_as_it_is(t, codec, cluster_size, program):
    # Not a whole number of clusters, so that the last one is a partial one.
    t.write("raw", mixed_data(image_size_for(cluster_size), cluster_size, 3) + bytes([7]) * 1536)
    getattr(t, f"{program}_img")("convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
                                 options(cluster_size, codec), "raw", "source.qcow2")
    convert(t, "source.qcow2", "copy.qcow2", cluster_size, codec, "--verify")
    t.sound("copy.qcow2")
    t.reads_as("copy.qcow2", "raw")
    # Of 512-byte clusters the stored length is known to the next 512 bytes only, which some exceed.
    if cluster_size == 512:
        return
    maps = [t.vise_img("map", "--output=json", name).json for name in ["copy.qcow2", "source.qcow2"]]
    keys = ["start", "length", "compressed", "zero"]
    t.equal(*[[[e[key] for key in keys] for e in extents] for extents in maps], "maps")
    t.check(os.path.getsize(t.path("copy.qcow2")) <=
            os.path.getsize(t.path("source.qcow2")) * 1.05 + 3 * cluster_size,
            "the copy is larger than the source")


@cases(codec=CODECS)
def refcounts_of_one_bit_take_a_host_cluster_each(t, codec):
    t.write("raw", mixed_data(2 * MIB, 4096, 5))
    convert(t, "raw", "source.qcow2", 4096, codec, "-f", "raw")
    convert(t, "source.qcow2", "copy.qcow2", 4096, codec, more=["refcount_bits=1"])
    t.sound("copy.qcow2")
    t.reads_as("copy.qcow2", "raw")


@case
def other_codecs_and_cluster_sizes_are_compressed_anew(t):
    t.write("raw", mixed_data(2 * MIB, 64 * KIB, 6))
    convert(t, "raw", "zlib.qcow2", 64 * KIB, "zlib", "-f", "raw")
    for name, cluster_size, codec in [("zstd", 64 * KIB, "zstd"), ("small", 4 * KIB, "zlib")]:
        convert(t, "zlib.qcow2", f"{name}.qcow2", cluster_size, codec)
        t.sound(f"{name}.qcow2")
        t.reads_as(f"{name}.qcow2", "raw")


@case
def a_level_or_recompress_compresses_anew(t):
    t.write("raw", mixed_data(4 * MIB, 64 * KIB, 7))
    convert(t, "raw", "fast.qcow2", 64 * KIB, "zlib", "-f", "raw", "--level", "1")
    convert(t, "fast.qcow2", "same.qcow2", 64 * KIB, "zlib")
    convert(t, "fast.qcow2", "best.qcow2", 64 * KIB, "zlib", "--level", "12")
    convert(t, "fast.qcow2", "anew.qcow2", 64 * KIB, "zlib", "--recompress")
    convert(t, "raw", "usual.qcow2", 64 * KIB, "zlib", "-f", "raw")
    t.equal(t.digest("anew.qcow2"), t.digest("usual.qcow2"), "recompressed and compressed at once")
    size = {name: os.path.getsize(t.path(f"{name}.qcow2")) for name in ["fast", "same", "best"]}
    t.equal(size["same"] // 4096, size["fast"] // 4096, "size of a copy")
    t.check(size["best"] < size["fast"], "level 12 is not smaller than level 1")
    for name in ["same", "best", "anew"]:
        t.reads_as(f"{name}.qcow2", "raw")


@case
def a_damaged_cluster_is_found_by_verify_only(t):
    t.write("raw", mixed_data(2 * MIB, 64 * KIB, 8))
    convert(t, "raw", "source.qcow2", 64 * KIB, "zstd", "-f", "raw")
    t.patch("source.qcow2", 5 * 64 * KIB + 2000, b"damage")
    convert(t, "source.qcow2", "blind.qcow2", 64 * KIB, "zstd")
    result = t.vise_img("convert", "-c", "--verify", "-O", "qcow2", "-o", options(64 * KIB, "zstd"),
                        "source.qcow2", "copy.qcow2", code=1)
    t.fails_clearly(result, "damaged")


main()
