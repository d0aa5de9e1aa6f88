# groups: rw auto
"""What an image says that we do not know (compatible bits, header extensions, header fields) is still
there after every operation; unknown autoclear bits go with the first writable open, and only then."""
import struct

from vise_iotest import *

COMPATIBLE, AUTOCLEAR = 1 << 40, 1 << 41
EXTENSION = (0x12345678, b"thirteen byte")
SECOND = (0x7fffffff, b"")
FIELDS = bytes(range(200, 216))  # behind byte 112


def extensions(data):
    """The list of (type, bytes) of an image's header."""
    found, at = [], struct.unpack(">I", data[100:104])[0]
    while True:
        kind, length = struct.unpack(">II", data[at:at + 8])
        if kind == 0:
            return found
        found.append((kind, data[at + 8:at + 8 + length]))
        at += 8 + (length + 7) // 8 * 8


def add_unknown(t, name):
    """Writes the header anew, with things in it that nobody knows."""
    data = t.read(name)
    cluster = 1 << struct.unpack(">I", data[20:24])[0]
    place, length = struct.unpack(">QI", data[8:20])
    backing = data[place:place + length] if place else b""
    head = bytearray(data[:112] + FIELDS)
    struct.pack_into(">Q", head, 80, struct.unpack(">Q", data[80:88])[0] | COMPATIBLE)
    struct.pack_into(">Q", head, 88, struct.unpack(">Q", data[88:96])[0] | AUTOCLEAR)
    struct.pack_into(">I", head, 100, len(head))
    for kind, content in [EXTENSION, *extensions(data), SECOND]:
        head += struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)
    head += bytes(8)
    if backing:
        struct.pack_into(">QI", head, 8, len(head), len(backing))
    t.patch(name, 0, bytes(head + backing).ljust(cluster, b"\0"))


def io(*commands):
    return lambda t: t.vise_io("-d", "unmap", "-f", "qcow2", "a.qcow2", commands=list(commands))


def img(*words):
    return lambda t: t.vise_img(*words)


# name: (does it open the image for writing, what it does)
OPERATIONS = {
    "info": (False, img("info", "a.qcow2")),
    "map": (False, img("map", "--output=json", "a.qcow2")),
    "check": (False, img("check", "a.qcow2")),
    "compare": (False, img("compare", "a.qcow2", "a.qcow2", "-U")),
    "read": (False, lambda t: t.vise_io("-r", "a.qcow2", commands=["read 0 1M"])),
    "convert from it": (False, img("convert", "-O", "qcow2", "a.qcow2", "other.qcow2")),
    "open for writing": (True, io("read 0 512")),
    "write": (True, io("write 0 64k", "write 100k 5000")),
    "compressed write": (True, io("write -c 2M 256k")),
    "zeroes": (True, io("write -z 1M 64k")),
    "discard": (True, io("discard 0 1M")),
    "many writes": (True, io("write 0 4M", "flush", "write 100k 10k")),
    "snapshot -c": (True, img("snapshot", "-c", "new", "a.qcow2")),
    "snapshot -a": (True, img("snapshot", "-a", "old", "a.qcow2")),
    "snapshot -d": (True, img("snapshot", "-d", "old", "a.qcow2")),
    "resize, larger": (True, img("resize", "a.qcow2", "3G")),
    "resize, smaller": (True, img("resize", "--shrink", "a.qcow2", "2M")),
    "resize with space": (True, img("resize", "--preallocation=metadata", "a.qcow2", "6M")),
    "rebase -u": (True, img("rebase", "-u", "-b", "b2.raw", "-F", "raw", "a.qcow2")),
    "rebase": (True, img("rebase", "-b", "b2.raw", "-F", "raw", "a.qcow2")),
    "rebase to nothing": (True, img("rebase", "-b", "", "a.qcow2")),
    "commit": (True, img("commit", "a.qcow2")),
    "amend lazy_refcounts": (True, img("amend", "-o", "lazy_refcounts=on", "a.qcow2")),
    "amend refcount_bits": (True, img("amend", "-o", "refcount_bits=64", "a.qcow2")),
    "amend size": (True, img("amend", "-o", "size=8M", "a.qcow2")),
    "bitmap --add": (True, img("bitmap", "--add", "a.qcow2", "new")),
    "bitmap --remove": (True, img("bitmap", "--remove", "a.qcow2", "b")),
    "bitmap --disable": (True, img("bitmap", "--disable", "a.qcow2", "b")),
    "check -r all": (True, img("check", "-r", "all", "a.qcow2")),
    "check -r leaks": (True, img("check", "-r", "leaks", "a.qcow2")),
}
# These want an image without bitmaps, or without snapshots.
WITHOUT_BITMAP = ["snapshot -a"]
WITHOUT_SNAPSHOT = ["commit"]


@cases(operation=list(OPERATIONS), cluster_size=["64k", "4k"])
def what_we_do_not_know_is_kept(t, operation, cluster_size):
    writes, run = OPERATIONS[operation]
    t.write("b.raw", bytes(4 * MIB))
    t.write("b2.raw", bytes(4 * MIB))
    t.vise_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", "-b", "b.raw", "-F",
               "raw", "a.qcow2", "4M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 1 0 200k", "write -q -c -P 2 2M 128k"])
    if operation not in WITHOUT_SNAPSHOT:
        t.vise_img("snapshot", "-c", "old", "a.qcow2")
    if operation not in WITHOUT_BITMAP:
        t.vise_img("bitmap", "--add", "a.qcow2", "b")
    add_unknown(t, "a.qcow2")
    if has("qemu-img"):
        t.qemu_img("info", "a.qcow2")  # the header is one that others read as well
    before = t.read("a.qcow2")
    run(t)
    after = t.read("a.qcow2")
    t.equal(struct.unpack(">Q", after[80:88])[0] & COMPATIBLE, COMPATIBLE, "unknown compatible bit")
    t.equal(struct.unpack(">I", after[100:104])[0], 112 + len(FIELDS), "header length")
    t.equal(after[112:112 + len(FIELDS)], FIELDS, "unknown fields")
    found = extensions(after)
    for unknown in (EXTENSION, SECOND):
        t.equal(found.count(unknown), 1, f"unknown extension {unknown[0]:#x}")
    autoclear = struct.unpack(">Q", after[88:96])[0] & AUTOCLEAR
    if "check -r" not in operation:  # a repair that has nothing to mend writes nothing
        t.equal(autoclear, 0 if writes else AUTOCLEAR, "unknown autoclear bit")
    if not writes:
        t.equal(after == before, True, "whether the image is as it was")
    t.sound("a.qcow2")


@case
def an_unknown_incompatible_bit_is_refused_by_every_operation(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "4M")
    t.write("b2.raw", bytes(4 * MIB))
    name = b"frobnication"
    data = t.read("a.qcow2")
    place = data.index(struct.pack(">I", 0x6803f857)) + 8
    t.patch("a.qcow2", place, struct.pack(">BB", 0, 50) + name.ljust(46, b"\0"))
    t.patch("a.qcow2", 72, struct.pack(">Q", 1 << 50))
    before = t.digest("a.qcow2")
    for words in (["map"], ["check"], ["snapshot", "-c", "s"], ["resize"], ["amend", "-o", "size=8M"],
                  ["bitmap", "--add"], ["rebase", "-u", "-b", "b2.raw", "-F", "raw"], ["commit"],
                  ["check", "-r", "all"]):
        more = {"resize": ["8M"], "bitmap": ["b"]}.get(words[0], [])
        t.fails_clearly(t.vise_img(*words, "a.qcow2", *more, code=1), "a.qcow2", name.decode())
    t.equal(t.digest("a.qcow2"), before, "the image")


main()
