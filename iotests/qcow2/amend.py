# groups: rw auto
"""vise-img amend: the content stays, both programs find the image sound and take it up again."""
import struct

from qcow2_bitmaps import Directory
from vise_iotest import *


def data(t, image):
    t.vise_img("convert", "-O", "raw", image, "out")
    return t.digest("out")


def info(t, image):
    return t.vise_img("info", "--output=json", image).json["format-specific"]["data"]


def make(t, options="", backing=False):
    words = ["-o", options] if options else []
    if backing:
        t.write("base", mixed_data(3 * MIB, 8192, 1))
        words += ["-b", "base", "-F", "raw"]
    t.vise_img("create", "-q", "-f", "qcow2", *words, "a.qcow2", "4M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=[
        "write -q -P 1 0 300k", "write -q -c -P 2 1M 64k", "write -q -c -P 3 1088k 64k",
        "write -q -P 4 2000k 100k"])


def zero_some(t):
    t.vise_io("-f", "qcow2", "a.qcow2", commands=[
        "write -q -z 64k 64k", "write -q -z -u 128k 64k", "write -q -z 2M 1M", "write -q -z 3500k 500k"])


@cases(cluster=["512", "4k", "64k"])
def every_width_of_refcounts(t, cluster):
    make(t, f"cluster_size={cluster}")
    zero_some(t)
    before = data(t, "a.qcow2")
    refused = 0
    for bits in [64, 1, 32, 2, 8, 4, 16]:
        done = t.vise_img("amend", "-o", f"refcount_bits={bits}", "a.qcow2", code=[0, 1])
        t.sound("a.qcow2")
        t.equal(data(t, "a.qcow2"), before, "content")
        if done.code:
            # Compressed clusters share host clusters.
            t.fails_clearly(done, f"{bits} bits")
            refused += 1
            continue
        t.equal(info(t, "a.qcow2")["refcount-bits"], bits, "width")
        t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 9 3M 128k", "write -q -z 3M 128k"])
        t.sound("a.qcow2")
    t.check(refused <= 3, f"{refused} widths refused")


@cases(backing=[False, True])
def from_one_version_to_the_other_and_back(t, backing):
    make(t, backing=backing)
    zero_some(t)
    before = data(t, "a.qcow2")
    for compat, shown in [("0.10", "0.10"), ("v3", "1.1"), ("v2", "0.10"), ("1.1", "1.1")]:
        t.equal(t.vise_img("amend", "-o", f"compat={compat}", "a.qcow2").output, "", "output")
        t.equal(info(t, "a.qcow2")["compat"], shown, "version")
        t.sound("a.qcow2")
        t.equal(data(t, "a.qcow2"), before, "content")
        if has("qemu-img"):
            t.qemu_img("convert", "-O", "raw", "a.qcow2", "theirs")
            t.equal(t.digest("theirs"), before, "content for qemu-img")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -z 0 4M", "write -q -P 1 0 4M"])
    t.sound("a.qcow2")


@case
def with_snapshots(t):
    make(t, "compat=0.10")
    t.vise_img("snapshot", "-c", "x", "a.qcow2")
    before = data(t, "a.qcow2")
    t.vise_img("amend", "-p", "-o", "compat=1.1,refcount_bits=32,lazy_refcounts=on", "a.qcow2")
    found = info(t, "a.qcow2")
    t.equal((found["compat"], found["refcount-bits"], found["lazy-refcounts"]), ("1.1", 32, True),
            "what has changed")
    t.sound("a.qcow2")
    t.vise_img("amend", "-o", "lazy_refcounts=off,refcount_bits=16,compat=0.10", "a.qcow2")
    t.sound("a.qcow2")
    t.vise_img("amend", "-o", "compat=1.1,size=6M", "a.qcow2")
    t.fails_clearly(t.vise_img("amend", "-o", "compat=0.10", "a.qcow2", code=1), "another size")
    t.vise_img("snapshot", "-a", "x", "a.qcow2")
    t.sound("a.qcow2")
    t.equal(data(t, "a.qcow2"), before, "content")


@cases(compressed=["nowhere", "now", "in a snapshot"])
def zstd_images_become_version_2_without_compressed_clusters(t, compressed):
    for name, run in (("qemu.qcow2", t.qemu_img), ("vise.qcow2", t.vise_img)):
        t.vise_img("create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", name, "4M")
        if compressed != "nowhere":
            t.vise_io("-f", "qcow2", name, commands=["write -q -c -P 2 0 64k"])
        if compressed == "in a snapshot":
            t.vise_img("snapshot", "-c", "s", name)
        t.vise_io("-f", "qcow2", name, commands=["write -q -P 1 0 300k"] if compressed != "now" else
                  ["write -q -P 1 64k 300k"])
        before = data(t, name)
        done = run("amend", "-o", "compat=0.10", name, code=(0, 1))
        t.equal(data(t, name), before, "content")
        if name == "qemu.qcow2" and compressed == "in a snapshot":
            continue  # the type goes, the snapshot's clusters stay
        t.equal(done.code, 0 if compressed == "nowhere" else 1, "exit status")
        t.sound(name)
        found = info(t, name)
        t.equal((found["compat"], found["compression-type"]),
                ("1.1", "zstd") if done.code else ("0.10", "zlib"), "form")
    if compressed != "nowhere":
        t.fails_clearly(done, "zlib alone")


def contents(t, image):
    """Digests of the disk and of every snapshot, as qemu-img reads them (ours where there is none)."""
    read = t.qemu_img if has("qemu-img") else t.vise_img
    found = {}
    for snapshot in t.vise_img("info", "--output=json", image).json.get("snapshots", []):
        read("convert", "-l", f"snapshot.id={snapshot['id']}", "-O", "raw", image, "view")
        found[snapshot["id"]] = t.digest("view")
    read("convert", "-O", "raw", image, "view")
    found["disk"] = t.digest("view")
    return found


def becomes_version_2(t, image):
    """Amends it, and expects all that was readable before."""
    before = contents(t, image)
    t.equal(t.vise_img("amend", "-o", "compat=0.10,refcount_bits=16", image).output, "", "output")
    t.equal(info(t, image)["compat"], "0.10", "version")
    t.sound(image)
    t.equal(contents(t, image), before, "contents")
    t.equal(data(t, image), before["disk"], "the disk for us")


@cases(backing=[False, True])
def zeros_of_snapshots_expand(t, backing):
    # Zeros above data that the first snapshot has there (the entry keeps the host cluster), zeros
    # that own nothing, zeros that all share, and zeros in one snapshot where another has data.
    make(t, backing=backing)
    t.vise_img("snapshot", "-c", "data", "a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -z 0 128k", "write -q -z -u 128k 64k"])
    t.vise_img("snapshot", "-c", "zeros", "a.qcow2")
    t.vise_img("snapshot", "-c", "again", "a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 5 64k 64k", "write -q -z 2M 1M"])
    t.vise_img("snapshot", "-c", "mixed", "a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 6 2M 64k", "write -q -z 3500k 64k"])
    becomes_version_2(t, "a.qcow2")
    for name in ["data", "zeros", "again", "mixed"]:
        t.vise_img("snapshot", "-a", name, "a.qcow2")
        t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 1 0 4M"])
        t.sound("a.qcow2")
    for name in ["zeros", "data", "mixed", "again"]:
        t.vise_img("snapshot", "-d", name, "a.qcow2")
        t.sound("a.qcow2")


@cases(seed=range(8))
def random_images_become_version_2_and_back(t, seed):
    chosen = random.Random(seed)
    cluster = chosen.choice([512, 4096, 65536])
    sectors = 40 * cluster // 512 + chosen.randrange(8)
    words = []
    if chosen.random() < 0.6:
        t.write("base", mixed_data(chosen.randrange(1, 2 * sectors) * 512, cluster, seed))
        words = ["-b", "base", "-F", "raw"]
    maker, writer = (t.qemu_img, t.qemu_io) if seed % 2 else (t.vise_img, t.vise_io)
    maker("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", *words, "a.qcow2",
          sectors * 512)
    for _ in range(2):
        for step in range(4):
            commands = []
            for _ in range(12):
                first = chosen.randrange(40) * cluster
                length = min(chosen.randint(1, 6) * cluster, sectors * 512 - first)
                kind = chosen.choice(["-z", "-z -u", "-z", f"-P {chosen.randrange(256)}"])
                commands.append(f"write -q {kind} {first} {length}")
            writer("-d", "unmap", "-f", "qcow2", "a.qcow2", commands=commands)
            maker("snapshot", "-c", f"s{step}", "a.qcow2")
        becomes_version_2(t, "a.qcow2")
        before = contents(t, "a.qcow2")
        t.vise_img("amend", "-o", "compat=1.1", "a.qcow2")
        t.sound("a.qcow2")
        t.equal(contents(t, "a.qcow2"), before, "contents")


@cases(maker=["vise", "qemu"])
def bitmaps_are_dropped_without_a_leak(t, maker):
    make(t)
    for name, more in [("one", []), ("two", ["--disable"])]:
        getattr(t, f"{maker}_img")("bitmap", "--add", *more, "a.qcow2", name)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 5 1M 1M"])
    before = data(t, "a.qcow2")
    done = t.vise_img("amend", "-o", "compat=0.10", "a.qcow2")
    t.check(re.search(r"vise-img: warning: .*dropped: 'one', 'two'", done.stderr), done)
    t.sound("a.qcow2")
    t.equal(data(t, "a.qcow2"), before, "content")
    t.vise_img("amend", "-o", "compat=1.1", "a.qcow2")
    t.equal(Directory(t, "a.qcow2").extension, None, "extension")
    t.equal("bitmaps" in info(t, "a.qcow2"), False, "bitmaps")


@case
def progress_goes_on_while_zeros_expand(t):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a.qcow2", "4M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -z 0 4M"])
    t.vise_img("snapshot", "-c", "s", "a.qcow2")
    done = t.vise_img("amend", "-p", "-o", "compat=v2", "a.qcow2").stdout
    shown = [float(number) for number in re.findall(r"\((\d+\.\d\d)/100%\)\r", done)]
    t.equal(shown, sorted(shown), "progress")
    t.check(len(shown) > 50 and shown[-1] == 100, shown)


@case
def version_2_refuses_what_it_cannot_have_before_anything_changes(t):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "refcount_bits=8", "narrow", "4M")
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "data_file=data", "external", "4M")
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "extended", "4M")
    for name in ["resized", "state"]:
        t.vise_img("create", "-q", "-f", "qcow2", name, "4M")
        t.vise_io("-f", "qcow2", name, commands=["write -q -z 0 64k", "write -q -P 1 64k 64k"])
        t.vise_img("snapshot", "-c", "old", name)
    t.vise_img("resize", "-q", "resized", "5M")
    table, = struct.unpack(">Q", t.read("state")[64:72])
    t.patch("state", table + 40, struct.pack(">Q", 5 << 30))  # the size of 64 bits
    for name, why in [("narrow", "16 bits"), ("external", "version 2"), ("extended", "version 2"),
                      ("resized", "'old'.*another size"), ("state", "'old'.*5368709120")]:
        before = t.digest(name)
        t.fails_clearly(t.vise_img("amend", "-o", "compat=0.10", name, code=1), why)
        t.equal(t.digest(name), before, f"image {name}")
        if has("qemu-img"):
            t.qemu_img("amend", "-o", "compat=0.10", name, code=1)
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "refcount_bits=8", "snapped", "4M")
    t.vise_img("snapshot", "-c", "s", "snapped")
    before = t.digest("snapped")
    t.fails_clearly(t.vise_img("amend", "-o", "compat=0.10,refcount_bits=16,size=8M", "snapped",
                               code=1), "resized")
    t.equal(t.digest("snapped"), before, "image")


@cases(count=["compressed", "plain"])
def wider_counts_are_the_way_out_where_snapshots_need_more(t, count):
    """Up to three compressed clusters share a host cluster whose count has two bits, and each of
    them is counted once more for each snapshot."""
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "refcount_bits=2", "a.qcow2", "4M")
    how, snapshots = ("-c", []) if count == "compressed" else ("", ["one", "two"])
    t.vise_io("-f", "qcow2", "a.qcow2", commands=[f"write -q {how} -P 5 0 1M"])
    for name in snapshots:
        t.vise_img("snapshot", "-c", name, "a.qcow2")
    t.vise_img("convert", "-O", "raw", "a.qcow2", "a.raw")
    before = t.digest("a.qcow2")
    for operation in ["-c", "-a"][:1 + len(snapshots[:1])]:
        name = "more" if operation == "-c" else "one"
        t.fails_clearly(t.vise_img("snapshot", operation, name, "a.qcow2", code=1), "of 2 bits",
                        "'amend -o refcount_bits=16' makes room")
    t.equal(t.digest("a.qcow2"), before, "a refused snapshot leaves everything as it was")
    t.vise_img("amend", "-o", "refcount_bits=16", "a.qcow2")
    t.vise_img("snapshot", "-c", "more", "a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 9 0 2M"])
    t.vise_img("snapshot", "-a", "more", "a.qcow2")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "a.raw")


@case
def what_cannot_change_is_refused(t):
    make(t, backing=True)
    before = t.digest("a.qcow2")
    for options in ["cluster_size=4k", "nonsense=1", "backing_file=other", "backing_fmt=qcow2",
                    "refcount_bits=3", "refcount_bits=128", "compat=0.10,refcount_bits=8",
                    "compat=0.10,lazy_refcounts=on", "compat=7", "data_file=x", "data_file_raw=on",
                    "lazy_refcounts=perhaps", "encryption=on"]:
        t.fails_clearly(t.vise_img("amend", "-o", options, "a.qcow2", code=1))
    t.vise_img("amend", "a.qcow2", code=1)
    t.equal(t.digest("a.qcow2"), before, "image")
    t.vise_img("amend", "-o", "backing_file=base,backing_fmt=raw", "a.qcow2")
    t.write("a.raw", bytes(512))
    t.fails_clearly(t.vise_img("amend", "-f", "raw", "-o", "size=1M", "a.raw", code=1), "raw")
    shown = t.vise_img("amend", "-f", "qcow2", "-o", "help").stdout
    t.check(shown.startswith("Amend options for 'qcow2':\n  backing_file=<str>"), shown)
    t.equal(t.vise_img("amend", "-o", "help", "a.qcow2").stdout, shown, "help for a file")
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "e.qcow2", "1M")
    t.fails_clearly(t.vise_img("amend", "-o", "compat=0.10", "e.qcow2", code=1), "version 2")


main()
