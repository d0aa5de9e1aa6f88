# groups: rw auto
"""Truncated, corrupted and hostile images: a clear error or a right answer, never a crash, a hang,
a huge allocation or a changed file."""
import struct

from vise_iotest import *

HEADER = {  # what is patched: (offset, bytes, text of the error)
    "magic": (0, b"QFX\xfb", "not in qcow2 format"),
    "version 0": (4, struct.pack(">I", 0), "version 0 is not supported, only 2 and 3"),
    "version 4": (4, struct.pack(">I", 4), "version 4 is not supported, only 2 and 3"),
    "backing name beyond the first cluster":
        (8, struct.pack(">QI", 1 << 40, 10),
         "Backing file name offset 1099511627776 is beyond the first cluster of 65536"),
    "backing name too long":
        (8, struct.pack(">QI", 1024, 5000), "Backing file name of 5000 bytes is longer than 1023"),
    "cluster bits 8": (20, struct.pack(">I", 8), "Cluster size 2^8 is outside 2^9 to 2^21"),
    "cluster bits 22": (20, struct.pack(">I", 22), "Cluster size 2^22 is outside 2^9 to 2^21"),
    "cluster bits 2^32-1":
        (20, struct.pack(">I", 0xffffffff), "Cluster size 2^4294967295 is outside 2^9 to 2^21"),
    "size that needs a larger L1 table":
        (24, struct.pack(">Q", 1 << 30), "L1 table is too small: 1 entries, 2 needed for 1073741824"),
    "size beyond any L1 table":
        (24, struct.pack(">Q", 1 << 60), "Virtual size 1152921504606846976 is too large"),
    "size 2^64-512":
        (24, struct.pack(">Q", (1 << 64) - 512), "Virtual size 18446744073709551104 is too large"),
    "encryption method 3": (32, struct.pack(">I", 3), "Encryption method 3 is not 0 to 2"),
    "L1 table too large":
        (36, struct.pack(">I", 0x20000000), "L1 table of 536870912 entries is larger than 4194304"),
    "L1 table of no entries":
        (36, struct.pack(">I", 0), "L1 table is too small: 0 entries, 1 needed for 1048576"),
    "L1 table not aligned":
        (40, struct.pack(">Q", 0x30200), "L1 table offset 0x30200 is not a multiple of the cluster size"),
    "L1 table past 2^63":
        (40, struct.pack(">Q", 1 << 63), "L1 table at 0x8000000000000000 ends beyond 2^63"),
    "refcount table not aligned":
        (48, struct.pack(">Q", 0x10200), "Refcount table offset 0x10200 is not a multiple of the cluster"),
    "refcount table past 2^63":
        (48, struct.pack(">Q", 1 << 63), "Refcount table at 0x8000000000000000 ends beyond 2^63"),
    "refcount table of no clusters": (56, struct.pack(">I", 0), "no refcount table"),
    "refcount table too large":
        (56, struct.pack(">I", 0x10000), "Refcount table of 65536 clusters is larger than 128"),
    "65537 snapshots": (60, struct.pack(">IQ", 65537, 0x50000), "65537 snapshots, more than 65536"),
    "snapshot table not aligned":
        (60, struct.pack(">IQ", 1, 0x50200), "Snapshot table offset 0x50200 is not a multiple of"),
    "unknown incompatible feature":
        (72, struct.pack(">Q", 1 << 40), "unsupported qcow2 features: unknown bits 0x10000000000"),
    "compression bit without a type":
        (72, struct.pack(">Q", 8), "Compression type 0 and incompatible feature bit 3 (set) contradict"),
    "refcount order 7": (96, struct.pack(">I", 7), "Reference count width 2^7 is more than 64 bits"),
    "header length 96": (100, struct.pack(">I", 96), "Header length 96 is not a multiple of 8 from 104"),
    "header length beyond the cluster":
        (100, struct.pack(">I", 1 << 20), "Header length 1048576 is not a multiple of 8 from 104"),
    "compression type 2":
        (104, b"\x02", "Compression type 2 and incompatible feature bit 3 (clear) contradict"),
    "extension longer than the cluster":
        (112, struct.pack(">II", 0x12345678, 0xfffffff0),
         "Header extension 0x12345678 at byte 112 has 4294967280 bytes"),
}


def make(t, name="a.qcow2", codec="zlib"):
    """A small image with compressed, plain and zero clusters, made without our programs' doubt:
    by qemu-img where it is there."""
    t.write("raw", mixed_data(MIB, 64 * KIB, 31))
    program = t.qemu_img if has("qemu-img") else t.vise_img
    program("convert", "-c", "-O", "qcow2", "-o", f"compression_type={codec}", "raw", name)
    (t.qemu_io if has("qemu-io") else t.vise_io)(
        "-f", "qcow2", name, commands=["write -P 5 0 64k", "write -z 64k 64k", "write -P 6 900k 4k"])
    return name


def survive(t, image, code=None):
    """All reading commands end by themselves, without a signal, and leave the file as it is."""
    before = t.digest(image)
    results = [
        t.vise_img("info", "--output=json", "-f", "qcow2", image, code=code, timeout=60),
        t.vise_img("check", "-f", "qcow2", image, code=code, timeout=60),
        t.vise_img("map", "--output=json", "-f", "qcow2", image, code=code, timeout=60),
        t.vise_img("convert", "-f", "qcow2", "-O", "raw", image, "out.raw", code=code, timeout=60),
        t.vise_io("-r", "-f", "qcow2", image, commands=["read 0 512k", "read 900k 100k"], code=code,
                  timeout=60)]
    t.equal(t.digest(image), before, "the image after reading commands")
    t.path("out.raw").unlink(missing_ok=True)
    return results


@cases(rule=list(HEADER))
def a_header_that_breaks_a_rule_is_refused(t, rule):
    offset, data, text = HEADER[rule]
    text = re.escape("Could not open 'a.qcow2': ") + ".*" + re.escape(text)
    t.patch(make(t), offset, data)
    before = t.digest("a.qcow2")
    t.fails_clearly(t.vise_img("map", "-f", "qcow2", "a.qcow2", code=1), text)
    t.fails_clearly(t.vise_img("convert", "-f", "qcow2", "-O", "raw", "a.qcow2", "out", code=1), text)
    t.fails_clearly(t.vise_io("-f", "qcow2", "a.qcow2", commands=["write 0 512"], code=1),
                    "a.qcow2", text.split(".*")[1])
    survive(t, "a.qcow2")
    t.equal(t.digest("a.qcow2"), before, "the image")


@case
def an_image_cut_at_any_length(t):
    whole = t.read(make(t))
    for length in [0, 3, 4, 8, 71, 72, 100, 104, 111, 112, 511, 512, 4096, 65535, 65536, 65537,
                   131072, 196608, 200000, 262144, 300000, len(whole) - 65536, len(whole) - 1]:
        t.write("cut.qcow2", whole[:length])
        survive(t, "cut.qcow2")
        if length < 104:
            t.fails_clearly(t.vise_img("map", "-f", "qcow2", "cut.qcow2", code=1), "cut.qcow2")


@cases(seed=range(6))
def random_bytes_changed_in_metadata(t, seed):
    source = random.Random(seed)
    whole = t.read(make(t, codec=CODECS[seed % 2]))
    for _ in range(12):
        image = bytearray(whole)
        for _ in range(source.choice([1, 1, 2, 8])):
            where = source.choice([112, 65536, 131072, 196608, 262144, 327680, len(image)])
            at = source.randrange(min(where, 400)) if where == 112 else \
                where - source.randrange(1, 65536) if source.randrange(2) else \
                where - 65536 + source.randrange(64)
            image[max(at, 0) % len(image)] = source.randrange(256)
        t.write("bad.qcow2", bytes(image))
        survive(t, "bad.qcow2")


@cases(seed=range(4))
def writing_to_a_damaged_image_does_not_crash(t, seed):
    source = random.Random(100 + seed)
    whole = t.read(make(t, codec=CODECS[seed % 2]))
    for _ in range(10):
        image = bytearray(whole)
        for _ in range(source.choice([1, 2, 4])):
            image[65536 + source.randrange(len(image) - 65536)] = source.randrange(256)
        t.write("bad.qcow2", bytes(image))
        for opts in ("driver=qcow2,file.filename=bad.qcow2",
                     "driver=compress,file.driver=qcow2,file.file.filename=bad.qcow2"):
            t.vise_io("--image-opts", opts, code=None, timeout=60, commands=[
                "write -P 1 0 64k", "write -P 2 100k 4k", "write -P 3 600k 100k", "discard 300k 200k",
                "write -z 700k 64k", "flush", "read 0 1M"])
        t.vise_img("check", "-r", "all", "bad.qcow2", code=None, timeout=60)


@cases(codec=CODECS)
def a_corrupted_compressed_stream_is_an_input_error(t, codec):
    t.write("raw", mixed_data(256 * KIB, 30000, 41))
    t.vise_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={codec}", "raw", "a.qcow2")
    size = t.path("a.qcow2").stat().st_size
    source = random.Random(3)
    for _ in range(20):
        t.write("bad.qcow2", t.read("a.qcow2"))
        at = 5 * 64 * KIB + source.randrange(size - 5 * 64 * KIB - 600)
        t.patch("bad.qcow2", at, source.randbytes(16))
        survive(t, "bad.qcow2")


def first_compressed_cluster(t, image):
    """Host offset of the stored bytes of guest cluster 0 (64 KiB clusters)."""
    head = t.read(image)
    l1 = struct.unpack(">Q", head[40:48])[0]
    l2 = struct.unpack(">Q", head[l1:l1 + 8])[0] & ((1 << 56) - 512)
    entry = struct.unpack(">Q", head[l2:l2 + 8])[0]
    t.check(entry >> 62 & 1, "guest cluster 0 is not compressed")
    return entry & ((1 << 54) - 1)


@cases(codec=CODECS)
def a_flipped_bit_in_a_compressed_cluster_is_found(t, codec):
    """zstd frames and deflate trailers carry a checksum; what it covers is never read back wrong."""
    words = (b"the quick brown fox jumps over the lazy dog %d " % n for n in range(5000))
    t.write("raw", b"".join(words)[:64 * KIB])
    t.vise_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={codec}", "raw", "a.qcow2")
    image, raw = t.read("a.qcow2"), t.read("raw")
    start = first_compressed_cluster(t, "a.qcow2")
    found = 0
    for at in range(start + 6, min(start + 3000, len(image) - 20), 100):
        t.write("bad.qcow2", image[:at] + bytes([image[at] ^ 1]) + image[at + 1:])
        done = t.vise_img("convert", "-O", "raw", "bad.qcow2", "out", code=(0, 1))
        t.check(done.code == 1 or t.read("out") == raw, f"wrong data without an error, byte {at}")
        found += done.code
    t.check(found > 5, f"only {found} flips were noticed")


@cases(content=["nothing", "noise", "text", "zeroes", "only the magic", "a folder"])
def files_that_are_no_image(t, content):
    if content == "a folder":
        t.path("a.qcow2").mkdir()
    else:
        data = {"nothing": b"", "noise": random.Random(1).randbytes(200000), "text": b"hello\n" * 99,
                "zeroes": bytes(1 << 20), "only the magic": b"QFI\xfb"}[content]
        t.write("a.qcow2", data)
    for arguments in (("map", "-f", "qcow2", "a.qcow2"), ("check", "-f", "qcow2", "a.qcow2"),
                      ("info", "-f", "qcow2", "a.qcow2"),
                      ("convert", "-f", "qcow2", "-O", "raw", "a.qcow2", "out")):
        t.fails_clearly(t.vise_img(*arguments, code=1), "a.qcow2")
    t.fails_clearly(t.vise_img("compare", "-f", "qcow2", "-F", "qcow2", "a.qcow2", "a.qcow2", code=2),
                    "a.qcow2")


@case
def an_l2_entry_that_points_at_the_header_is_not_written_through(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 1 0 64k"])
    l1 = struct.unpack(">Q", t.read("a.qcow2")[40:48])[0]
    l2 = struct.unpack(">Q", t.read("a.qcow2")[l1:l1 + 8])[0] & ((1 << 56) - 512)
    t.patch("a.qcow2", l2, struct.pack(">Q", 1 << 63))  # COPIED, host offset 0
    before = t.read("a.qcow2")[:512]
    # (Without a data file, offset 0 means that there is no cluster, whatever the flag says.)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 9 0 64k", "read -P 9 0 64k"])
    t.equal(t.read("a.qcow2")[:512], before, "header")


@case
def a_sparse_image_of_a_terabyte_is_checked_in_little_memory(t):
    make(t)
    with open(t.path("a.qcow2"), "r+b") as file:
        file.truncate(1 << 40)
    t.vise_img("check", "a.qcow2", code=(0, 1, 2, 3), timeout=60)


main()
