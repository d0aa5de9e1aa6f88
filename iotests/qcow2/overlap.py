# groups: rw auto
"""Writes that would hit metadata are not done: the image is marked corrupt and takes no more requests,
like in qemu-io; what overlap-check switches off is not looked at."""
import struct

from vise_iotest import *

MASK = (1 << 56) - 512
CLUSTER = 64 * KIB
KINDS = ["active L1 table", "active L2 table", "refcount table", "refcount block", "snapshot table",
         "inactive L1 table", "inactive L2 table", "bitmap directory"]
SWITCH = {kind: "overlap-check." + kind.lower().replace(" table", "").replace(" ", "-")
          for kind in KINDS} | {"refcount table": "overlap-check.refcount-table",
                                "snapshot table": "overlap-check.snapshot-table"}


def u64(data, offset):
    return struct.unpack(">Q", data[offset:offset + 8])[0]


def places(data):
    """Host offsets of one piece of metadata of each kind."""
    l1, table, snapshots = u64(data, 40), u64(data, 48), u64(data, 64)
    found = {"active L1 table": l1, "active L2 table": u64(data, l1) & MASK, "refcount table": table,
             "refcount block": u64(data, table)}
    if snapshots:
        found["snapshot table"] = snapshots
        found["inactive L1 table"] = u64(data, snapshots)
        found["inactive L2 table"] = u64(data, u64(data, snapshots)) & MASK
    at = 112
    while struct.unpack(">I", data[at:at + 4])[0]:
        kind, length = struct.unpack(">II", data[at:at + 8])
        if kind == 0x23852875:
            found["bitmap directory"] = u64(data, at + 8 + 16)
        at += 8 + (length + 7) // 8 * 8
    return found


def make(t, name, kind):
    """An image in which one cluster of that kind of metadata counts as free, and its offset."""
    t.qemu_img("create", "-q", "-f", "qcow2", name, "4M")
    t.qemu_io("-f", "qcow2", name, commands=["write -q -P 1 0 128k"])
    if "inactive" in kind or "snapshot" in kind:
        t.qemu_img("snapshot", "-c", "one", name)
        t.qemu_io("-f", "qcow2", name, commands=["write -q -P 1 0 128k"])  # gives the disk its own L2
    if kind == "bitmap directory":
        t.qemu_img("bitmap", "--add", name, "b")
    data = t.read(name)
    found = places(data)
    t.patch(name, found["refcount block"] + 2 * (found[kind] // CLUSTER), b"\0\0")
    return found[kind]


def is_corrupt(t, image):
    return t.vise_img("info", "--output=json", image).json["format-specific"]["data"]["corrupt"]


# The guest's third cluster gets the first free place, which is the one that is not free.
WRITE = "write -P 7 128k 64k"


# (We give up bitmaps whose directory counts as free, with a warning, rather than the image.)
@cases(kind=[kind for kind in KINDS if kind != "bitmap directory"])
def a_table_that_counts_as_free_is_not_overwritten(t, kind):
    options = "overlap-check=all,driver=qcow2,file.filename="
    results = {}
    for name, run in (("qemu.qcow2", t.qemu_io), ("vise.qcow2", t.vise_io)):
        place = make(t, name, kind)
        before = t.read(name)
        done = run("--image-opts", options + name, code=1,
                   commands=[WRITE, "read -P 1 0 64k", "write -P 7 1M 64k"])
        after = t.read(name)
        t.equal(after[place:place + CLUSTER], before[place:place + CLUSTER], f"the {kind}")
        t.check(re.search(f"Marking image as corrupt: .*overlaps with {kind}", done.stderr), done)
        t.equal(done.stderr.count("Marking image"), 1, "notices")
        t.check(is_corrupt(t, name), "the corrupt bit is not set")
        results[name] = sum(word in done.output for word in ("wrote", "read 65536"))
    t.equal(results["vise.qcow2"], results["qemu.qcow2"], "requests that worked")
    t.equal(results["vise.qcow2"], 0, "requests that worked")


@cases(kind=["active L2 table", "refcount block", "snapshot table"])
def a_corrupt_image_opens_read_only_until_it_is_repaired(t, kind):
    make(t, "a.qcow2", kind)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=[WRITE], code=1)
    t.fails_clearly(t.vise_io("-f", "qcow2", "a.qcow2", commands=[WRITE], code=1), "a.qcow2",
                    "marked corrupt", "read-only")
    t.qemu_io("-f", "qcow2", "a.qcow2", commands=[WRITE], code=1)
    t.vise_io("-r", "-f", "qcow2", "a.qcow2", commands=["read -P 1 0 128k"])
    t.vise_img("convert", "-O", "raw", "a.qcow2", "a.raw")
    t.vise_img("check", "-r", "all", "a.qcow2")
    t.check(not is_corrupt(t, "a.qcow2"), "the corrupt bit is still set")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "a.raw")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=[WRITE, "read -P 7 128k 64k", "read -P 1 0 128k"])
    t.sound("a.qcow2")


@cases(kind=["active L1 table", "refcount table", "refcount block", "active L2 table",
             "bitmap directory"])
def data_that_points_at_metadata_is_not_written_in_place(t, kind):
    digests = {}
    for name, run in (("qemu.qcow2", t.qemu_io), ("vise.qcow2", t.vise_io)):
        t.qemu_img("create", "-q", "-f", "qcow2", name, "4M")
        t.qemu_io("-f", "qcow2", name, commands=["write -q -P 1 0 128k"])
        if kind == "bitmap directory":
            t.qemu_img("bitmap", "--add", name, "b")
        found = places(t.read(name))
        t.patch(name, found["active L2 table"], struct.pack(">Q", found[kind] | 1 << 63))
        before = t.read(name)
        done = run("-f", "qcow2", name, commands=["write -P 7 0 4k"], code=1)
        t.check(f"overlaps with {kind}" in done.stderr, done)
        after = bytearray(t.read(name))
        t.equal(after[79] & 2, 2, "corrupt bit")
        after[79] &= ~2
        if kind == "bitmap directory":  # opening for writing has marked the bitmap as in use
            after[found[kind] + 15] &= ~1
        t.equal(bytes(after) == before, True, "whether all else is as it was")
        digests[name] = t.digest(name)
    t.equal(digests["qemu.qcow2"], digests["vise.qcow2"], "files")


@cases(kind=["active L2 table", "snapshot table", "inactive L1 table", "inactive L2 table",
             "bitmap directory"],
       how=["none", "single"])
def what_is_switched_off_is_not_looked_at(t, kind, how):
    options = "overlap-check=none" if how == "none" else f"overlap-check.template=all,{SWITCH[kind]}=off"
    for name, run in (("qemu.qcow2", t.qemu_io), ("vise.qcow2", t.vise_io)):
        make(t, name, kind)
        done = run("--image-opts", f"driver=qcow2,{options},file.filename={name}", code=None,
                   commands=[WRITE])
        t.check("Marking image as corrupt" not in done.stderr, done)
        t.check("wrote 65536" in done.output, done)


@case
def the_tables_of_snapshots_are_looked_at_with_all_only(t):
    for mode, code in (("cached", 0), ("all", 1)):
        make(t, "a.qcow2", "inactive L2 table")
        t.vise_io("--image-opts", f"driver=qcow2,overlap-check={mode},file.filename=a.qcow2",
                  commands=[WRITE], code=code)
    for mode, code in (("constant", 0), ("cached", 1)):
        make(t, "a.qcow2", "inactive L1 table")
        t.vise_io("--image-opts", f"driver=qcow2,overlap-check={mode},file.filename=a.qcow2",
                  commands=[WRITE], code=code)


@case
def version_2_images_cannot_be_marked_but_are_kept_all_the_same(t):
    t.qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "a.qcow2", "4M")
    t.qemu_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 1 0 128k"])
    found = places(t.read("a.qcow2") [:112] + bytes(8) + t.read("a.qcow2")[120:])
    t.patch("a.qcow2", found["refcount block"] + 2 * (found["active L2 table"] // CLUSTER), b"\0\0")
    before = t.digest("a.qcow2")
    done = t.vise_io("-f", "qcow2", "a.qcow2", commands=[WRITE, "read -P 1 0 64k"], code=1)
    t.check("overlaps with active L2 table" in done.stderr, done)
    t.equal(t.digest("a.qcow2"), before, "the image")


@case
def operations_on_whole_images_stop_as_well(t):
    """An L1 entry that names the refcount block as an L2 table: no operation may write there."""
    for command in (["snapshot", "-c", "s"], ["resize", "--shrink", "64k"],
                    ["amend", "-o", "refcount_bits=32"]):
        t.qemu_img("create", "-q", "-f", "qcow2", "a.qcow2", "4M")
        t.qemu_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 1 0 128k"])
        found = places(t.read("a.qcow2"))
        t.patch("a.qcow2", found["active L1 table"], struct.pack(">Q", found["refcount block"] | 1 << 63))
        block = t.read("a.qcow2")[found["refcount block"]:found["refcount block"] + CLUSTER]
        words = [*command[:1], "-f", "qcow2", *command[1:]] if command[0] != "snapshot" else command
        words = words + ["a.qcow2"] if command[0] != "resize" else \
            words[:-1] + ["a.qcow2", command[-1]]
        t.vise_img(*words, code=1)
        t.equal(t.read("a.qcow2")[found["refcount block"]:found["refcount block"] + CLUSTER], block,
                f"refcount block after {' '.join(command)}")


@case
def an_unknown_check_is_refused(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "1M")
    for option in ("overlap-check=some", "overlap-check.active-l3=on", "overlap-check.active-l2=maybe"):
        t.fails_clearly(t.vise_io("--image-opts", f"driver=qcow2,{option},file.filename=a.qcow2",
                                  commands=["read 0 512"], code=1), "overlap-check")


main()
