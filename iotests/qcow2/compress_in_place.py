# groups: rw auto
"""`vise-img compress`: the content stays, the file shrinks, whatever happens on the way."""
from vise_iotest import *

from in_place import as_short_as_can_be, kill_at_moments, size_of


def make(t, size, cluster_size, codec="zlib", more="", name="a.qcow2", unit=None, seed=1):
    """An image without compressed clusters, of the bytes in "raw"."""
    t.write("raw", mixed_data(size, unit or cluster_size, seed))
    options = f"cluster_size={cluster_size},compression_type={codec}{more}"
    t.vise_img("convert", "-f", "raw", "-O", "qcow2", "-o", options, "raw", name)
    return name


def compressed_clusters(t, name):
    return t.vise_img("check", "--output=json", name).json.get("compressed-clusters", 0)


@cases(codec=CODECS, cluster_size=[512, 4 * KIB, 64 * KIB, 2 * MIB])
def the_file_gets_as_small_as_a_compressed_copy(t, codec, cluster_size):
    size = {512: 3 * MIB, 4 * KIB: 12 * MIB, 64 * KIB: 48 * MIB, 2 * MIB: 48 * MIB}[cluster_size] + 1536
    image = make(t, size, cluster_size, codec, unit=max(64 * KIB, cluster_size))
    t.vise_img("convert", "-c", "-O", "qcow2", "-o",
               f"cluster_size={cluster_size},compression_type={codec}", image, "copy.qcow2")
    before = size_of(t, image)
    result = t.vise_img("compress", "--compact", "--output=json", image).json
    t.sound(image)
    t.reads_as(image, "raw")
    t.equal(compressed_clusters(t, image), compressed_clusters(t, "copy.qcow2"), "compressed clusters")
    after, copy = size_of(t, image), size_of(t, "copy.qcow2")
    t.check(after <= copy * 1.06 + 4 * cluster_size, f"{before} bytes became {after}, a copy has {copy}")
    t.equal(result["file-size-before"], before, "length before")
    t.equal(result["file-size-after"], after, "length now")
    t.equal(result["actual-size-after"], t.allocated(image), "allocated now")
    t.check(result["compressed"] > 0 and result["moved"] > 0, result)
    again = t.vise_img("compress", "--compact", "--output=json", image).json
    t.equal(again["compressed"], 0, "compressed by a second run")
    t.equal(size_of(t, image), after, "length after a second run")


@cases(codec=CODECS)
def without_compact_the_disk_usage_shrinks(t, codec):
    image = make(t, 48 * MIB, 64 * KIB, codec)
    t.vise_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={codec}", image, "copy.qcow2")
    if t.allocated("copy.qcow2") < size_of(t, "copy.qcow2") // 2:
        raise Skip("the file system compresses by itself")
    text = t.vise_img("compress", image).stdout
    t.check(re.fullmatch(r"Compressed [\d.]+ MiB of the disk in place\.\n"
                         r"file length: .* before, .* now \(\d+ bytes\)\n"
                         r"disk size: .* before, .* now \(\d+ bytes\)\n", text), text)
    t.sound(image)
    t.reads_as(image, "raw")
    t.check(t.allocated(image) <= t.allocated("copy.qcow2") * 1.1 + MIB,
            f"{t.allocated(image)} bytes on disk, a copy has {t.allocated('copy.qcow2')}")


def with_snapshots(t, size, cluster_size, *more, codec="zlib"):
    """An image with three snapshots that share clusters of every kind with each other and the disk.
    Returns it and the digests of what the disk and the snapshots hold."""
    image = make(t, size, cluster_size, codec, *more)
    for number, name in enumerate(["one", "two", "three"]):
        t.vise_io("-f", "qcow2", image, commands=[f"write -q -c -P {number + 3} {number}M 1M",
                                                  f"write -q -z {number * 64 + 3000}k 100k"])
        t.vise_img("snapshot", "-c", name, image)
        t.write("new.raw", mixed_data(size // 4, cluster_size, 9 + number))
        t.vise_io("-f", "qcow2", image, commands=[f"write -q -s new.raw {number * size // 5} {size // 4}",
                                                  f"write -q -P {number + 40} {number * 300}k 7k"])
    return image, contents(t, image)


def contents(t, image):
    digests = []
    for name in [None, "one", "two", "three"]:
        t.vise_img("convert", *(["-l", name] if name else []), "-O", "raw", image, "content.raw")
        digests.append(t.digest("content.raw"))
    return digests


@cases(codec=CODECS, cluster_size=[512, 4 * KIB, 64 * KIB])
def what_snapshots_hold_is_compressed_too(t, codec, cluster_size):
    size = (4 if cluster_size == 512 else 16) * MIB + 512
    image, before = with_snapshots(t, size, cluster_size, codec=codec)
    plain, taken = plain_clusters(t, image), t.allocated(image)
    result = t.vise_img("compress", "--compact", "--output=json", image).json
    t.sound(image)
    t.equal(contents(t, image), before, "what the disk and its snapshots hold")
    # What is left does not shrink: mixed_data() is random for a quarter.
    t.check(plain_clusters(t, image) < plain * 0.45, f"{plain} plain clusters, now {plain_clusters(t, image)}")
    t.check(t.allocated(image) < taken * 0.85, f"{taken} bytes on disk became {t.allocated(image)}")
    as_short_as_can_be(t, image)
    again = t.vise_img("compress", "--output=json", image).json
    t.equal(again["compressed"], 0, "compressed by a second run")
    t.check(result["compressed"] >= (plain - plain_clusters(t, image)) * cluster_size - MIB, result)
    if has("qemu-img"):
        for name in ["one", "two"]:
            t.qemu_img("convert", "-l", f"snapshot.name={name}", "-O", "raw", image, "theirs.raw")
            t.equal(t.digest("theirs.raw"), before[["disk", "one", "two"].index(name)], f"{name}, says qemu-img")
        # The tables stay as QEMU wants them: snapshots can be applied and deleted there.
        t.qemu_img("snapshot", "-a", "two", image)
        t.qemu_img("snapshot", "-d", "one", image)
    else:
        t.vise_img("snapshot", "-a", "two", image)
        t.vise_img("snapshot", "-d", "one", image)
    t.sound(image)
    t.vise_img("convert", "-O", "raw", image, "content.raw")
    t.equal(t.digest("content.raw"), before[2], "the disk after applying")
    for name in ["two", "three"]:
        t.vise_img("snapshot", "-d", name, image)
    t.vise_img("compress", "--compact", image)
    t.sound(image)
    t.vise_img("convert", "-O", "raw", image, "content.raw")
    t.equal(t.digest("content.raw"), before[2], "the disk without snapshots")


def plain_clusters(t, image):
    """Host clusters that hold data as it is, of the disk and all snapshots."""
    bits = int.from_bytes(t.read(image)[20:24], "big")
    data = t.read(image)
    word = lambda at: int.from_bytes(data[at:at + 8], "big")  # noqa: E731
    tables = [(word(40), int.from_bytes(data[36:40], "big"))]
    at = word(64)
    for _ in range(int.from_bytes(data[60:64], "big")):
        at = -(-at // 8) * 8
        tables.append((word(at), int.from_bytes(data[at + 8:at + 12], "big")))
        lengths = [int.from_bytes(data[at + o:at + o + n], "big") for o, n in [(12, 2), (14, 2), (36, 4)]]
        at += 40 + sum(lengths)
    plain = set()
    for offset, entries in tables:
        for l2 in {word(offset + 8 * i) & 0x00fffffffffffe00 for i in range(entries)} - {0}:
            for i in range(l2, l2 + (1 << bits), 8):
                if data[i:i + 8] != bytes(8) and not data[i] & 0x40 and not data[i + 7] & 1:
                    plain.add(word(i) & 0x00fffffffffffe00)
    return len(plain)


@cases(more=[",compat=0.10", ",refcount_bits=4", ",refcount_bits=2", ",refcount_bits=64", ",extended_l2=on"])
def snapshots_in_other_forms_of_images(t, more):
    if "extended" in more:
        installed("qemu-img")
    image = make(t, 6 * MIB, 16 * KIB, more=more)
    counts = 2 if "=2" in more else 3
    for number in range(counts):
        t.vise_img("snapshot", "-c", ["one", "two", "three"][number], image)
        t.vise_io("-f", "qcow2", image, commands=[f"write -q -P {number} {number}M 300k",
                                                  f"write -q -z {number * 900}k 33k"])
    if counts == 2:
        t.vise_img("snapshot", "-d", "one", image)
        t.vise_img("snapshot", "-c", "one", image)
    names = ["one", "two", "three"][:counts]

    def held():
        digests = []
        for name in [None, *names]:
            t.vise_img("convert", *(["-l", name] if name else []), "-O", "raw", image, "content.raw")
            digests.append(t.digest("content.raw"))
        return digests
    before, taken = held(), t.allocated(image)
    t.vise_img("compress", "-q", "--compact", image)
    t.sound(image)
    t.equal(held(), before, "what the disk and its snapshots hold")
    t.check("=2" in more or t.allocated(image) < taken * 0.8, f"{taken} bytes became {t.allocated(image)}")
    as_short_as_can_be(t, image)


@case
def an_overlay_stays_above_its_backing_file(t):
    t.write("base.raw", mixed_data(8 * MIB, 64 * KIB, 4))
    t.vise_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "a.qcow2")
    t.write("new.raw", mixed_data(2 * MIB, 16 * KIB, 5))
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -s new.raw 1M 2M", "write -q -z 4M 256k",
                                                  "write -q -P 0 5M 256k"])
    t.vise_img("convert", "-O", "raw", "a.qcow2", "now.raw")
    base = t.digest("base.raw")
    t.vise_img("compress", "--compact", "a.qcow2")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "now.raw")
    t.equal(t.digest("base.raw"), base, "the backing file")
    # Nothing of the backing file has come up.
    allocated = t.vise_img("check", "--output=json", "a.qcow2").json["allocated-clusters"]
    t.check(allocated <= 2 * MIB // (64 * KIB), f"{allocated} clusters allocated")


@cases(more=["", ",compat=0.10", ",refcount_bits=2", ",refcount_bits=64", ",extended_l2=on"])
def other_forms_of_images(t, more):
    if "extended" in more:
        installed("qemu-img")
    image = make(t, 8 * MIB, 16 * KIB, more=more, seed=6)
    t.vise_io("-f", "qcow2", image, commands=["write -q -P 1 100k 1k", "write -q -z 1M 128k",
                                              "discard -q 2M 100k", "write -q -c -P 2 3M 64k"])
    t.vise_img("convert", "-O", "raw", image, "now.raw")
    before = size_of(t, image)
    t.vise_img("compress", "-q", "--compact", image)
    t.sound(image)
    t.reads_as(image, "now.raw")
    t.check(size_of(t, image) < before * 0.8, f"{before} bytes became {size_of(t, image)}")


@case
def preallocated_space_that_holds_nothing_goes(t):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "preallocation=full", "a.qcow2", "64M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 1 10M 1M"])
    t.vise_img("compress", "--compact", "a.qcow2")
    t.sound("a.qcow2")
    t.check(size_of(t, "a.qcow2") < MIB, size_of(t, "a.qcow2"))
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 1 10M 1M", "read -P 0 0 10M"])


@case
def holes_that_overwrites_left_are_packed(t):
    """Compressed clusters of which earlier sessions have replaced two thirds."""
    image = make(t, 24 * MIB, 64 * KIB, unit=MIB)
    t.vise_img("compress", "-q", "--compact", image)
    packed = size_of(t, image)
    for start in range(2):
        t.vise_io("-f", "qcow2", image, commands=[f"write -q -z -u {i * 64}k 64k"
                                                  for i in range(start, 24 * 16, 3)])
    t.vise_img("convert", "-O", "raw", image, "now.raw")
    t.vise_img("compress", "-q", "--compact", image)
    t.sound(image)
    t.reads_as(image, "now.raw")
    t.vise_img("convert", "-c", "-O", "qcow2", image, "copy.qcow2")
    t.check(size_of(t, image) <= size_of(t, "copy.qcow2") * 1.2 + 512 * KIB,
            f"{packed} bytes became {size_of(t, image)}, a copy has {size_of(t, 'copy.qcow2')}")


@case
def tables_at_the_end_of_the_file_move_too(t):
    """The image grew until its L1 table and refcount table moved to the end; then most of it went."""
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a.qcow2", "64k")
    t.write("noise", random.Random(7).randbytes(22 * MIB))
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 1 0 64k"])
    t.vise_img("resize", "-q", "a.qcow2", "24M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -s noise 1M 22M"])
    t.vise_img("bitmap", "--add", "a.qcow2", "late")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 5 2M 600k"])
    t.vise_io("-d", "unmap", "-f", "qcow2", "a.qcow2", commands=["discard -q 3M 19M"])
    t.vise_img("convert", "-O", "raw", "a.qcow2", "now.raw")
    t.check(size_of(t, "a.qcow2") > 20 * MIB, size_of(t, "a.qcow2"))
    t.vise_img("compress", "-q", "--compact", "a.qcow2")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "now.raw")
    t.vise_img("convert", "-c", "-O", "qcow2", "-o", "cluster_size=512", "a.qcow2", "copy.qcow2")
    zero_tables = 19 * MIB // (32 * KIB) * 512  # say that what was discarded is zero
    t.check(size_of(t, "a.qcow2") <= size_of(t, "copy.qcow2") * 1.03 + zero_tables,
            f"{size_of(t, 'a.qcow2')} bytes, a copy has {size_of(t, 'copy.qcow2')}")


@case
def bitmaps_stay_and_record_nothing(t):
    image = make(t, 8 * MIB, 64 * KIB)
    t.vise_img("bitmap", "--add", image, "b0")
    before = t.vise_img("info", "--output=json", image).json["format-specific"]["data"]["bitmaps"]
    t.vise_img("compress", "-q", "--compact", image)
    t.sound(image)
    after = t.vise_img("info", "--output=json", image).json["format-specific"]["data"]["bitmaps"]
    t.equal(after, before, "bitmaps")
    t.reads_as(image, "raw")


@case
def levels_and_the_filter_on_top(t):
    sizes = {}
    for level in ["fastest", "1", "12"]:
        image = make(t, 16 * MIB, 64 * KIB, name=f"{level}.qcow2", seed=3)
        t.vise_img("compress", "-q", "--compact", "--level", level, "-m", "3", "-r", "1G",
                   "--image-opts", f"driver=compress,file.driver=qcow2,file.file.filename={image}")
        t.reads_as(image, "raw")
        sizes[level] = size_of(t, image)
    t.check(sizes["12"] < sizes["1"] <= sizes["fastest"] * 1.001, sizes)


@case
def killed_at_200_moments_the_image_is_intact(t):
    image = make(t, 24 * MIB, 16 * KIB, unit=128 * KIB)
    t.vise_io("-f", "qcow2", image, commands=["write -q -c -P 7 1M 1M", "write -q -P 0 3M 300k"])
    t.vise_img("convert", "-O", "raw", image, "now.raw")
    kill_at_moments(t, image, 200,
                    lambda: t.vise_img("compare", "-f", "qcow2", "-F", "raw", image, "now.raw"))


@case
def killed_at_100_moments_snapshots_are_intact(t):
    image, before = with_snapshots(t, 12 * MIB, 16 * KIB)
    kill_at_moments(t, image, 100, lambda: t.equal(contents(t, image), before, "disk and snapshots"))


@case
def little_free_space_is_enough(t):
    folder = t.tmpfs("small", f"{96 + 64}M")
    t.write("raw", mixed_data(92 * MIB, 256 * KIB, 2))
    t.vise_img("convert", "-S", "0", "-f", "raw", "-O", "qcow2", "raw", folder / "a.qcow2")
    t.check(size_of(t, folder / "a.qcow2") > 90 * MIB, "the image is too small for this test")
    t.vise_img("compress", "--compact", folder / "a.qcow2")
    t.sound(folder / "a.qcow2")
    t.reads_as(folder / "a.qcow2", "raw")


@case
def without_free_space_it_stops_and_harms_nothing(t):
    folder = t.tmpfs("full", f"{32 * MIB + 512 * KIB}")
    # Shrinks to a bit more than a half, so that a lot is stored before anything is free.
    t.write("raw", random.Random(2).randbytes(31 * MIB // 2).hex().encode())
    t.vise_img("convert", "-f", "raw", "-O", "qcow2", "raw", folder / "a.qcow2")
    result = t.vise_img("compress", folder / "a.qcow2", code=1)
    t.fails_clearly(result, "No space left on device")
    t.vise_img("check", folder / "a.qcow2", code=(0, 3))
    t.reads_as(folder / "a.qcow2", "raw")


@case
def wrong_use_is_refused_and_changes_nothing(t):
    image = make(t, MIB, 64 * KIB)
    digest = t.digest(image)

    def refused(*arguments, says):
        t.fails_clearly(t.vise_img("compress", *arguments, code=1), says)

    refused(image, "--level", "13", says="zlib has levels 1 to 12")
    refused(image, "--level", "0", says="compression level 0.*1 to 19")
    refused(image, "-m", "17", says="1 to 16")
    refused(image, "-r", "fast", says="rate 'fast'")
    refused("-f", "raw", "raw", says="format 'raw' cannot be compressed in place")
    refused("missing.qcow2", says="missing.qcow2.*No such file")
    refused(image, "another", says="another")
    refused(says="image file name")
    refused("--image-opts", f"driver=qcow2,read-only=on,file.filename={image}", says="read-only")
    t.equal(t.digest(image), digest, "the image")

    make(t, MIB, 64 * KIB, more=",refcount_bits=1", name="narrow.qcow2")
    refused("narrow.qcow2", says="refcounts of 1 bit")
    t.write("broken.qcow2", t.read(image))
    t.patch("broken.qcow2", 2 * 64 * KIB, bytes(2 * 8))  # refcounts
    refused("broken.qcow2", says="corrupt|rebuilt|counts as free")
    if has("qemu-img"):
        t.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "external.qcow2", "1M")
        refused("external.qcow2", says="external data file")
    t.write("aes.qcow2", t.read(image))
    t.patch("aes.qcow2", 32, (1).to_bytes(4, "big"))  # crypt_method
    refused("aes.qcow2", says="encrypted")


main()
