# groups: rw auto
"""Compressed clusters that travel as they are stored: same content, sound images, same bytes."""
from vise_iotest import *


def options(cluster_size, codec, *more):
    return ",".join([f"cluster_size={cluster_size}", f"compression_type={codec}", *more])


def convert(t, source, target, cluster_size, codec, *arguments, more=()):
    t.vise_img("convert", "-c", "-O", "qcow2", "-o", options(cluster_size, codec, *more),
               *arguments, source, target)


def clusters_of(t, image, cluster_size):
    """What each cluster of the disk is stored as."""
    kinds = []
    for extent in t.vise_img("map", "--output=json", image).json:
        kind = "zero" if extent["zero"] else "compressed" if extent["compressed"] else "data"
        kinds += [kind] * -(-extent["length"] // cluster_size)
    return kinds


@cases(codec=CODECS, cluster_size=[512, 4 * KIB, 64 * KIB, 2 * MIB], program=["vise", "qemu"])
def what_either_compressed_is_copied_as_it_is(t, codec, cluster_size, program):
    # Not a whole number of clusters, so that the last one is a partial one.
    t.write("raw", mixed_data(image_size_for(cluster_size), cluster_size, 3) + bytes([7]) * 1536)
    getattr(t, f"{program}_img")("convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
                                 options(cluster_size, codec), "raw", "source.qcow2")
    convert(t, "source.qcow2", "copy.qcow2", cluster_size, codec, "--verify")
    t.sound("copy.qcow2")
    t.reads_as("copy.qcow2", "raw")
    copied, stored = (clusters_of(t, name, cluster_size) for name in ["copy.qcow2", "source.qcow2"])
    if cluster_size == 512 and program == "qemu":
        # What qemu-img could not make smaller is compressed by our level after all, here and there.
        copied = [old if old == "data" else new for new, old in zip(copied, stored)]
    t.equal(copied, stored, "maps")
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


def incremental(t, cluster_size, codec, *more):
    """base.qcow2 holds old.raw, mid.qcow2 above it new.raw; both compressed, and they agree in parts."""
    size = image_size_for(cluster_size)
    old = mixed_data(size, cluster_size, 11) + bytes([7]) * 1536
    new = bytearray(mixed_data(size, cluster_size, 12) + bytes([8]) * 1536)
    new[size // 3:size // 2] = old[size // 3:size // 2]
    t.write("old.raw", old)
    t.write("new.raw", bytes(new))
    convert(t, "old.raw", "base.qcow2", cluster_size, codec, "-f", "raw", more=more)
    convert(t, "new.raw", "mid.qcow2", cluster_size, codec, "-f", "raw", "-B", "base.qcow2", "-F", "qcow2")


def overlay(t, name, backing, cluster_size, codec, *more):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", options(cluster_size, codec, *more), "-b", backing,
               "-F", "qcow2", name)


def compressed_clusters(t, image):
    return t.sound(image) and t.vise_img("check", "--output=json", image).json.get("compressed-clusters", 0)


@cases(codec=CODECS, cluster_size=[512, 4 * KIB, 64 * KIB, 2 * MIB], refcount_bits=[1, 16])
def a_rebase_takes_compressed_clusters_over(t, codec, cluster_size, refcount_bits):
    incremental(t, cluster_size, codec)
    overlay(t, "top.qcow2", "mid.qcow2", cluster_size, codec, f"refcount_bits={refcount_bits}")
    held = compressed_clusters(t, "mid.qcow2")
    for backing, least in [("base.qcow2", held // 2), ("", held)]:
        t.vise_img("rebase", "-c", "-b", backing, *(["-F", "qcow2"] if backing else []), "top.qcow2")
        found = compressed_clusters(t, "top.qcow2")
        t.check(least <= found <= held, f"above {backing!r}: {found} compressed clusters of {held}")
        t.reads_as("top.qcow2", "new.raw")


@cases(codec=CODECS, cluster_size=[512, 4 * KIB, 64 * KIB, 2 * MIB], refcount_bits=[1, 16])
def a_commit_keeps_compressed_clusters_compressed(t, codec, cluster_size, refcount_bits):
    incremental(t, cluster_size, codec, f"refcount_bits={refcount_bits}")
    t.vise_io("-f", "qcow2", "mid.qcow2", commands=["write -q -P 5 64k 3k"])
    t.vise_img("convert", "-O", "raw", "mid.qcow2", "expected")
    held = compressed_clusters(t, "mid.qcow2")
    t.vise_img("commit", "-q", "mid.qcow2")
    kept = compressed_clusters(t, "base.qcow2")
    t.equal(kept, held, "compressed clusters")
    for image in ["base.qcow2", "mid.qcow2"]:
        t.reads_as(image, "expected")


@cases(mid=["zlib", "zstd"], base=["zlib", "zstd"], small=["mid", "base"])
def other_codecs_and_sizes_are_read_and_written(t, mid, base, small):
    incremental(t, 64 * KIB, mid)
    t.vise_img("convert", "-c", "-O", "qcow2", "-o", options(4 * KIB if small == "base" else 64 * KIB, base),
               "-f", "raw", "old.raw", "base.qcow2")
    overlay(t, "top.qcow2", "mid.qcow2", 4 * KIB if small == "mid" else 64 * KIB, base)
    t.vise_img("rebase", "-c", "-b", "", "top.qcow2")
    t.vise_img("commit", "-q", "mid.qcow2")
    for image in ["base.qcow2", "top.qcow2"]:
        t.sound(image)
        t.reads_as(image, "new.raw")


@case
def clusters_move_through_a_chain_whose_images_end_inside_a_cluster(t):
    t.write("old.raw", mixed_data(300 * KIB + 512, 64 * KIB, 3))
    convert(t, "old.raw", "base.qcow2", 64 * KIB, "zlib", "-f", "raw")
    overlay(t, "mid.qcow2", "base.qcow2", 64 * KIB, "zlib")
    t.vise_img("resize", "-q", "mid.qcow2", MIB)
    t.vise_io("-f", "qcow2", "mid.qcow2", commands=["write -q -c -P 3 128k 64k", "write -q -P 4 700k 1k"])
    overlay(t, "top.qcow2", "mid.qcow2", 64 * KIB, "zlib")
    t.vise_img("convert", "-O", "raw", "top.qcow2", "expected")
    convert(t, "top.qcow2", "copy.qcow2", 64 * KIB, "zlib")
    t.vise_img("rebase", "-c", "-b", "", "top.qcow2")
    for image in ["top.qcow2", "copy.qcow2"]:
        t.sound(image)
        t.reads_as(image, "expected")


@case
def what_moves_as_stored_is_not_decoded_unless_told(t):
    t.write("old.raw", mixed_data(MIB, 64 * KIB, 8))
    t.write("new.raw", (b"".join(b"%d " % i for i in range(300000)))[:MIB])
    convert(t, "old.raw", "base.qcow2", 64 * KIB, "zstd", "-f", "raw")
    convert(t, "new.raw", "mid.qcow2", 64 * KIB, "zstd", "-f", "raw", "-B", "base.qcow2", "-F", "qcow2")
    damaged = bytearray(t.read("mid.qcow2"))
    damaged[5 * 64 * KIB + 2000:5 * 64 * KIB + 2006] = b"damage"

    def anew():
        t.write("mid.qcow2", bytes(damaged))
        overlay(t, "top.qcow2", "mid.qcow2", 64 * KIB, "zstd")

    for words, code in [([], 0), (["--recompress"], 1), (["--level", "3"], 1)]:
        anew()
        done = t.vise_img("rebase", "-c", *words, "-b", "", "top.qcow2", code=code)
        t.check(code == 0 or done.stderr.startswith("vise-img: "), done)
        anew()
        t.vise_img("commit", "-d", *(["-c", *words] if words else []), "mid.qcow2", code=code)


@case
def a_commit_compresses_when_told(t):
    incremental(t, 64 * KIB, "zlib")
    overlay(t, "top.qcow2", "base.qcow2", 64 * KIB, "zlib")
    t.vise_io("-f", "qcow2", "top.qcow2", commands=["write -q -P 5 0 512k"])
    t.vise_img("convert", "-O", "raw", "top.qcow2", "expected")
    for words in [["--level", "3"], ["--recompress"], ["-c", "--level", "13"]]:
        t.fails_clearly(t.vise_img("commit", *words, "top.qcow2", code=1), "level|recompress")
        t.fails_clearly(t.vise_img("rebase", *words, "-b", "", "top.qcow2", code=1), "level|recompress")
    before = compressed_clusters(t, "base.qcow2")
    t.vise_img("commit", "-q", "-d", "-c", "--level", "9", "top.qcow2")
    t.check(compressed_clusters(t, "base.qcow2") >= before, "not compressed")
    t.reads_as("base.qcow2", "expected")
    t.vise_img("create", "-q", "-f", "qcow2", "-b", "old.raw", "-F", "raw", "onraw.qcow2")
    t.fails_clearly(t.vise_img("commit", "-c", "onraw.qcow2", code=1), "compressed")


main()
