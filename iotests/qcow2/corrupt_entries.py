# groups: rw auto
"""Entries that cannot be right, met by reads and writes: like in qemu-io, the request fails, an image
that is open for writing is marked corrupt and takes no more requests; a reader goes on elsewhere."""
import struct

from vise_iotest import *

CLUSTER = 64 * KIB
MASK = (1 << 56) - 512
COPIED = 1 << 63


def u64(data, offset):
    return struct.unpack(">Q", data[offset:offset + 8])[0]


class Image:
    """Data in the guest's clusters 0, 1 and 3, a preallocated zero cluster in 2."""

    def __init__(self, t, name, options=""):
        self.t, self.name = t, name
        words = ["-o", options.replace("NAME", name)] if options else []
        t.qemu_img("create", "-q", "-f", "qcow2", *words, name, "4M")
        t.qemu_io("-f", "qcow2", name, commands=["write -q -P 1 0 256k", "write -q -z 128k 64k"])
        data = t.read(name)
        self.l1, self.table = u64(data, 40), u64(data, 48)
        self.l2 = u64(data, self.l1) & MASK
        self.data = data

    def change(self, offset, *, flip=0, to=None):
        value = (u64(self.data, offset) if to is None else to) ^ flip
        self.t.patch(self.name, offset, struct.pack(">Q", value))


# What is wrong: creation options, the change.
BROKEN = {
    "L2 table not aligned": ("", lambda i: i.change(i.l1, flip=0x200)),
    "cluster not aligned": ("", lambda i: i.change(i.l2, flip=0x200)),
    "shared cluster not aligned": ("", lambda i: i.change(i.l2, flip=0x200 | COPIED)),
    "zero cluster not aligned": ("", lambda i: i.change(i.l2, to=0x90200 | COPIED | 1)),
    "cluster of version 2 not aligned": ("compat=0.10", lambda i: i.change(i.l2, flip=0x200)),
    "zero flag in version 2": ("compat=0.10", lambda i: i.change(i.l2, flip=1)),
    "subclusters allocated and zero":
        ("extended_l2=on", lambda i: i.change(i.l2 + 8, to=(1 << 64) - 1)),
    "one subcluster allocated and zero":
        ("extended_l2=on", lambda i: i.change(i.l2 + 8, to=1 << 63 | 0xffffffff)),
    "subclusters allocated nowhere": ("extended_l2=on", lambda i: i.change(i.l2, to=0)),
    "cluster of subclusters not aligned": ("extended_l2=on", lambda i: i.change(i.l2, flip=0x200)),
    "cluster in the data file not aligned":
        ("data_file=NAME.data", lambda i: i.change(i.l2, to=0x200 | COPIED)),
    "compressed cluster beside a data file":
        ("data_file=NAME.data", lambda i: i.change(i.l2, to=0x10000 | 1 << 62)),
    "cluster elsewhere in the data file":
        ("data_file=NAME.data", lambda i: i.change(i.l2, to=0x10000 | COPIED)),
}
# qemu-io overwrites these entries without a look at what they say.
OVERWRITTEN = {"zero flag in version 2": ["full"], "shared cluster not aligned": ["full"],
               "compressed cluster beside a data file": ["full"],
               "cluster elsewhere in the data file": ["part", "full"]}
REQUESTS = {"read": "read -q 4k 4k", "part": "write -q -P 9 4k 4k", "full": "write -q -P 9 0 64k"}


def outcome(t, run, name, request, read_only=False):
    words = ["-r"] if read_only else []
    done = run(*words, "-f", "qcow2", name, code=1, commands=[
        request, "read -P 1 192k 4k", *([] if read_only else ["write -P 5 3M 4k"])])
    header = t.read(name)[:80]
    return {"marked": header[7] == 3 and header[79] & 2 == 2,
            "failed": done.output.count(" failed: "),
            "done": [word for word in ("read 4096/4096", "wrote 4096/4096") if word in done.output],
            "notices": done.stderr.count("Marking image as corrupt")}, done


@cases(what=list(BROKEN), request=list(REQUESTS))
def a_request_that_meets_it_fails_and_the_image_is_marked(t, what, request):
    options, break_it = BROKEN[what]
    outcomes = {}
    for name, run in (("qemu.qcow2", t.qemu_io), ("vise.qcow2", t.vise_io)):
        if name == "qemu.qcow2" and request in OVERWRITTEN.get(what, []):
            continue
        break_it(Image(t, name, options))
        outcomes[name], done = outcome(t, run, name, REQUESTS[request])
    ours = outcomes["vise.qcow2"]
    t.equal(ours, outcomes.get("qemu.qcow2", ours), "what came of it")
    t.equal((ours["failed"], ours["done"], ours["notices"]), (3, [], 1), "what came of it")
    t.equal(ours["marked"], "version 2" not in what, "whether the image is marked")
    t.check("the image is corrupt" in done.stderr and "takes no more requests" in done.stderr, done)


@cases(what=list(BROKEN))
def a_reader_goes_on_elsewhere(t, what):
    options, break_it = BROKEN[what]
    name = "a.qcow2"
    break_it(Image(t, name, options))
    before = t.digest(name)
    ours, _ = outcome(t, t.vise_io, name, REQUESTS["read"], read_only=True)
    theirs, _ = outcome(t, t.qemu_io, name, REQUESTS["read"], read_only=True)
    t.equal(ours, theirs, "what came of it")
    elsewhere = [] if "L2 table" in what else ["read 4096/4096"]
    t.equal((ours["marked"], ours["done"]), (False, elsewhere), "what came of it")
    t.equal(t.digest(name), before, "the image")


@cases(request=["write -z 0 64k", "write -z -u 0 64k", "discard 0 64k", "write -c -P 9 0 64k"])
def what_would_replace_it_is_refused_too(t, request):
    """Where its space lies is not known, so that it could not be given back."""
    image = Image(t, "a.qcow2")
    BROKEN["cluster not aligned"][1](image)
    t.vise_io("-d", "unmap", "-f", "qcow2", "a.qcow2", commands=[request], code=1)
    t.equal(t.read("a.qcow2")[79] & 2, 2, "corrupt bit")
    t.equal(t.read("a.qcow2")[image.l2:image.l2 + 8], struct.pack(">Q", u64(image.data, image.l2) ^ 0x200),
            "the entry")


@cases(request=["write -P 9 1M 64k", "write -c -P 9 1M 64k", "discard 0 64k", "write -z -u 0 64k"])
def a_refcount_block_that_is_not_aligned_is_not_changed(t, request):
    for name, run in (("qemu.qcow2", t.qemu_io), ("vise.qcow2", t.vise_io)):
        image = Image(t, name)
        image.change(image.table, flip=0x200)
        run("-r", "-f", "qcow2", name, commands=["read -P 1 0 128k"])
        # Reading, and writing in place, change no count.
        run("-f", "qcow2", name, commands=["read -P 1 0 128k", "write -P 1 0 64k"])
        t.equal(t.read(name)[79] & 2, 0, "corrupt bit")
        block = u64(image.data, image.table)
        run("-d", "unmap", "-f", "qcow2", name, code=1, commands=[request, "write -P 9 2M 64k"])
        if name == "vise.qcow2" or "-c" not in request:
            t.equal(t.read(name)[79] & 2, 2, "corrupt bit")
        t.equal(t.read(name)[block:block + CLUSTER], image.data[block:block + CLUSTER], "block")


@cases(what=["L2 table not aligned", "cluster not aligned"],
       words=["snapshot -c x FILE", "resize --shrink -f qcow2 FILE 32k"])
def operations_on_whole_images_mark_it_as_well(t, what, words):
    BROKEN[what][1](Image(t, "a.qcow2"))
    words = words.replace("FILE", "a.qcow2").split()
    t.vise_img(*words, code=1)
    t.equal(t.read("a.qcow2")[79] & 2, 2, "corrupt bit")
    t.fails_clearly(t.vise_img(*words, code=1), "a.qcow2", "marked corrupt")


@case
def so_do_those_that_meet_a_refcount_block_that_is_not_aligned(t):
    for words in (["snapshot", "-c", "x", "FILE"], ["resize", "--shrink", "-f", "qcow2", "FILE", "32k"]):
        for name, run in (("qemu.qcow2", t.qemu_img), ("vise.qcow2", t.vise_img)):
            image = Image(t, name)
            image.change(image.table, flip=0x200)
            run(*[name if word == "FILE" else word for word in words], code=1)
            t.equal(t.read(name)[79] & 2, 2, f"corrupt bit after {words[0]}")


main()
