# groups: rw auto
"""Persistent dirty bitmaps: the same commands give the same bitmaps as with QEMU, images change hands,
writers are killed, directories damaged."""
from vise_iotest import *

import struct
import subprocess
import time

from qcow2_bitmaps import AUTOCLEAR, Directory

def dirty_by_qemu(t, image, name):
    """What QEMU's NBD server says is dirty, or Skip."""
    socket = t.path("nbd.sock")
    server = subprocess.Popen([installed("qemu-nbd"), "-r", "-t", "-f", "qcow2", "-k", str(socket), "-B", name,
                               str(t.path(image))])
    try:
        for _ in range(200):
            if socket.exists() or server.poll() is not None:
                break
            time.sleep(0.05)
        entries = t.qemu_img("map", "--output=json", "--image-opts",
                             f"driver=nbd,server.type=unix,server.path={socket},"
                             f"x-dirty-bitmap=qemu:dirty-bitmap:{name}").json
    finally:
        server.terminate()
        server.wait()
    return [(entry["start"], entry["length"]) for entry in entries if not entry["data"]]


def merged(extents):
    result = []
    for start, length in extents:
        if result and sum(result[-1]) == start:
            result[-1] = (result[-1][0], result[-1][1] + length)
        else:
            result.append((start, length))
    return result


def steps(seed, size, count):
    """Commands for the img program and, as lists, for the io program."""
    source = random.Random(seed)
    names, commands = [], []
    for _ in range(count):
        kind = source.randrange(9)
        if kind < 2 or not names:
            name = f"b{len(commands)}" + "x" * source.randrange(12)
            words = ["--add"] + (["--disable"] if source.randrange(4) == 0 else [])
            if source.randrange(3):
                words += ["-g", str(512 << source.randrange(12))]
            names.append(name)
            commands.append(words + ["IMAGE", name])
        elif kind == 2:
            commands.append([source.choice(["--enable", "--disable", "--clear"]), "IMAGE", source.choice(names)])
        elif kind == 3:
            commands.append(["--merge", source.choice(names), "IMAGE", source.choice(names)])
        elif kind == 4 and len(names) > 1:
            name = names.pop(source.randrange(len(names)))
            commands.append(["--remove", "IMAGE", name])
        else:
            lines = []
            for _ in range(source.randint(1, 6)):
                offset = source.randrange(size // 512) * 512
                length = min(512 * source.randint(1, 400), size - offset)
                lines.append(source.choice([f"write -q -P 7 {offset} {length}", f"write -q -z {offset} {length}",
                                            f"discard -q {offset} {length}", f"read -q {offset} {length}"]))
            commands.append(lines)
    return commands


def play(t, program, image, step):
    if "IMAGE" in step:
        getattr(t, f"{program}_img")("bitmap", "-f", "qcow2", *[image if w == "IMAGE" else w for w in step])
    else:
        getattr(t, f"{program}_io")("-d", "unmap", "-f", "qcow2", image, commands=step)


@cases(cluster_size=[512, 4096, 65536, 2097152])
def the_same_commands_give_the_same_bitmaps(t, cluster_size):
    size = 9 * MIB + 512
    for name in ["vise", "qemu", "both"]:
        t.qemu_img("create", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", name, size)
    commands = steps(cluster_size, size, 36)
    for number, step in enumerate(commands):
        play(t, "vise", "vise", step)
        play(t, "qemu", "qemu", step)
        play(t, ["vise", "qemu"][number // 2 % 2], "both", step)
        if number % 6 == 5 or number + 1 == len(commands):
            expected = Directory(t, "qemu").summary()
            t.equal(Directory(t, "vise").summary(), expected, f"bitmaps after {commands[:number + 1]}")
            t.equal(Directory(t, "both").summary(), expected, "bitmaps of the image that changed hands")
    for name in ["vise", "both"]:
        t.sound(name)
    ours = t.vise_img("info", "--output=json", "vise").json["format-specific"]["data"].get("bitmaps")
    theirs = t.qemu_img("info", "--output=json", "vise").json["format-specific"]["data"].get("bitmaps")
    t.equal(ours, theirs, "lists of bitmaps")


@case
def bits_lie_where_the_format_says(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a", 64 * MIB)
    t.vise_img("bitmap", "--add", "-g", "512", "a", "b")
    t.vise_io("-f", "qcow2", "a", commands=["write 0 512", "write 1536 512", "write 5120 1024"])
    t.equal(Directory(t, "a").bytes("b")[:4], b"\x09\x0c\0\0", "bytes")
    t.equal(dirty_by_qemu(t, "a", "b"), [(0, 512), (1536, 512), (5120, 1024)], "dirty stretches")
    t.sound("a")


@case
def qemu_serves_what_we_recorded(t):
    size = 50 * MIB + 1536
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a", size)
    t.vise_img("bitmap", "--add", "-g", "512", "a", "b")
    source = random.Random(5)
    t.vise_io("-f", "qcow2", "a", commands=[f"write -q {source.randrange(size // 512 - 9) * 512} {512 * source.randint(1, 9)}"
                                          for _ in range(60)] + [f"write -q {size - 512} 512"])
    t.equal(merged(dirty_by_qemu(t, "a", "b")), Directory(t, "a").extents("b"), "dirty stretches")


@cases(writer=["vise", "qemu"])
def a_killed_writer_leaves_inconsistent_bitmaps(t, writer):
    t.qemu_img("create", "-q", "-f", "qcow2", "a", "4M")
    for name in ["b", "c"]:
        t.vise_img("bitmap", "--add", "a", name)
    process = t.hold(f"{writer}-io", "-f", "qcow2", "a")
    process.command_line("write 0 64k")
    process.command_line("flush")
    process.kill()
    t.equal([Directory(t, "a").flags(name) for name in ["b", "c"]], [3, 3], "flags")
    for program in ["vise_img", "qemu_img"]:
        bitmaps = getattr(t, program)("info", "--output=json", "a").json["format-specific"]["data"]["bitmaps"]
        t.equal([bitmap["flags"] for bitmap in bitmaps], [["in-use", "auto"]] * 2, program)
    for action in ["--clear", "--enable", "--disable", "--add", ("--merge", "c")]:
        words = action if isinstance(action, tuple) else (action,)
        t.vise_img("bitmap", *words, "a", "b", code=1)
    t.check("inconsistent" in t.vise_io("-f", "qcow2", "a", commands=["truncate 8M"], code=None).output,
            "resized with inconsistent bitmaps")
    t.equal(Directory(t, "a").size, 4 * MIB, "size")
    t.vise_io("-f", "qcow2", "a", commands=["read -P 0xcd 0 64k", "write 1M 64k"])
    t.vise_img("bitmap", "--remove", "a", "b")
    t.qemu_img("bitmap", "--remove", "a", "c")
    t.check(Directory(t, "a").extension is None, "the extension is still there")
    t.vise_img("check", "-r", "all", "a")
    t.sound("a")


@case
def reading_changes_nothing(t):
    t.qemu_img("create", "-q", "-f", "qcow2", "a", "4M")
    t.qemu_img("bitmap", "--add", "a", "b")
    t.qemu_io("-f", "qcow2", "a", commands=["write 0 64k"])
    before = t.digest("a")
    t.vise_io("-r", "-f", "qcow2", "a", commands=["read 0 64k", "read 1M 64k"])
    t.vise_img("info", "a")
    t.vise_img("check", "a")
    t.vise_img("map", "a")
    t.vise_img("convert", "-O", "raw", "a", "a.raw")
    t.equal(t.digest("a"), before, "the image")


@case
def a_node_turned_read_only_stores_its_bitmaps(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a", "4M")
    t.vise_img("bitmap", "--add", "a", "b")
    process = t.hold("vise-io", "-f", "qcow2", "a")
    process.command_line("write 0 64k")
    t.equal(Directory(t, "a").flags("b"), 3, "flags while open")
    process.command_line("reopen -r")
    t.equal(Directory(t, "a").flags("b"), 2, "flags when read-only")
    t.equal(Directory(t, "a").granules("b"), [0], "bits")
    process.command_line("reopen -w")
    t.equal(Directory(t, "a").flags("b"), 3, "flags when writable again")
    process.command_line("write 128k 64k")
    t.equal(process.end(), 0, "exit status")
    t.equal(Directory(t, "a").granules("b"), [0, 2], "bits")
    t.sound("a")


def with_bitmap(t):
    t.qemu_img("create", "-q", "-f", "qcow2", "a", "4M")
    t.qemu_img("bitmap", "--add", "a", "b")
    t.qemu_io("-f", "qcow2", "a", commands=["write 0 64k"])
    return Directory(t, "a")


@cases(damage=["type", "flags", "table", "granularity", "name", "count", "offset"])
def a_damaged_directory_loses_the_bitmaps_only(t, damage):
    directory = with_bitmap(t)
    at = directory.bitmaps["b"][0]
    offset, data = {"type": (at + 16, b"\7"), "flags": (at + 15, b"\xf0"), "table": (at, b"\0" * 7 + b"\1"),
                    "granularity": (at + 17, b"\x40"), "name": (at + 18, b"\0\0"),
                    "count": (directory.extension, b"\0\0\0\7"),
                    "offset": (directory.extension + 16, struct.pack(">Q", 1 << 40))}[damage]
    t.patch("a", offset, data)
    before = t.digest("a")
    t.qemu_img("info", "a", code=1)
    t.check("lost" in t.vise_io("-r", "-f", "qcow2", "a", commands=["read -P 0xcd 0 64k"]).stderr, "no warning")
    info = t.vise_img("info", "--output=json", "a")
    t.check("bitmaps" not in info.json["format-specific"]["data"] and "damaged" in info.stderr, info)
    t.equal(t.digest("a"), before, "the image")
    t.vise_io("-f", "qcow2", "a", commands=["write -P 1 64k 64k"])
    t.equal(Directory(t, "a").bit, 0, "autoclear bit")
    t.qemu_io("-f", "qcow2", "a", commands=["read -P 0xcd 0 64k", "read -P 1 64k 64k"])
    t.vise_img("bitmap", "--add", "a", "b")
    t.vise_img("check", "-r", "leaks", "a")
    t.sound("a")


@cases(entry=[0x8000000000000000, 3, 0x50001, 0x1000000000])
def a_damaged_table_loses_that_bitmap_only(t, entry):
    directory = with_bitmap(t)
    t.qemu_img("bitmap", "--add", "a", "good")
    t.patch("a", Directory(t, "a").bitmaps["b"][1], struct.pack(">Q", entry))
    result = t.vise_io("-f", "qcow2", "a", commands=["read -P 0xcd 0 64k", "write 64k 64k"])
    if entry == 0x1000000000:  # beyond the end of the file: reads as zeroes there
        return
    t.check("'b'" in result.stderr, result)
    t.equal(Directory(t, "a").flags("b"), 3, "flags")
    t.equal(Directory(t, "a").granules("good"), [1], "bits of the other one")
    t.vise_img("bitmap", "--remove", "a", "b")
    t.vise_img("check", "-r", "leaks", "a")
    t.sound("a")


@case
def bitmaps_that_cannot_be_read_do_not_keep_the_disk_from_being_read(t):
    directory = with_bitmap(t)
    data = struct.unpack_from(">Q", directory.data, directory.bitmaps["b"][1])[0] & 0x00fffffffffffe00
    image = (f"driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=a,"
             f"file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.sector={data // 512}")
    result = t.vise_io("-r", "--image-opts", image, commands=["read -P 0xcd 0 64k"])
    t.check("'b' cannot be used" in result.stderr, result)
    before = t.digest("a")
    t.vise_io("--image-opts", image, commands=["write 0 64k"], code=1)
    t.equal(t.digest("a"), before, "the image")


@case
def tables_of_ones_and_bits_past_the_end_are_understood(t):
    directory = with_bitmap(t)
    at, table = directory.bitmaps["b"][:2]
    t.vise_img("bitmap", "--add", "a", "other")
    directory = Directory(t, "a")
    t.patch("a", directory.bitmaps["b"][1], struct.pack(">Q", 1))
    t.vise_img("bitmap", "--add", "a", "c")
    t.vise_img("bitmap", "--merge", "b", "a", "c")
    t.equal(Directory(t, "a").granules("c"), list(range(64)), "bits")
    t.equal(len(Directory(t, "a").bytes("c")), 8, "bytes")
    t.vise_img("check", "-r", "leaks", "a")
    t.sound("a")


@case
def bitmaps_without_the_autoclear_bit_are_ignored(t):
    with_bitmap(t)
    t.patch("a", AUTOCLEAR, bytes(8))
    t.vise_img("bitmap", "--clear", "a", "b", code=1)
    t.vise_img("bitmap", "--add", "a", "b")
    t.equal(Directory(t, "a").granules("b"), [], "bits")
    t.vise_img("check", "-r", "leaks", "a")
    t.sound("a")


@cases(first=["vise", "qemu"])
def convert_takes_bitmaps_over(t, first):
    t.qemu_img("create", "-q", "-f", "qcow2", "a", "20M")
    for words in [["-g", "512", "a", "on"], ["--disable", "a", "off"], ["-g", "1M", "a", "late"]]:
        t.qemu_img("bitmap", "--add", *words)
    t.qemu_io("-f", "qcow2", "a", commands=["write 0 64k", "write 5M 512"])
    t.qemu_img("bitmap", "--disable", "a", "late")
    for program in ["vise", "qemu"]:
        getattr(t, f"{program}_img")("convert", "--bitmaps", "-O", "qcow2", "-o", "cluster_size=4k", "a", program)
    t.equal(Directory(t, "vise").summary(), Directory(t, "qemu").summary(), "bitmaps")
    t.equal(Directory(t, "vise").bytes("on"), Directory(t, "a").bytes("on"), "bits")
    t.vise_img("convert", "-c", "--bitmaps", "-O", "qcow2", first, "again")
    t.equal(Directory(t, "again").summary(), Directory(t, "qemu").summary(), "bitmaps")
    t.vise_img("convert", "-O", "qcow2", "a", "without")
    t.check(Directory(t, "without").extension is None, "bitmaps nobody asked for")
    for name in ["vise", "again"]:
        t.sound(name)


@case
def convert_refuses_what_it_cannot_take_over(t):
    with_bitmap(t)
    t.fails_clearly(t.vise_img("convert", "--bitmaps", "-O", "raw", "a", "r", code=1), "raw.*bitmaps")
    t.fails_clearly(t.vise_img("convert", "--bitmaps", "-O", "qcow2", "-o", "compat=0.10", "a", "v2", code=1),
                    "bitmaps")
    t.fails_clearly(t.vise_img("convert", "--skip-broken-bitmaps", "-O", "qcow2", "a", "x", code=1), "--bitmaps")
    t.fails_clearly(t.vise_img("convert", "--bitmaps", "-O", "qcow2", "a", "a", "x", code=1), "single")
    process = t.hold("vise-io", "-f", "qcow2", "a")
    process.command_line("write 0 64k")
    process.kill()
    t.vise_img("bitmap", "--add", "a", "good")
    t.fails_clearly(t.vise_img("convert", "--bitmaps", "-O", "qcow2", "a", "x", code=1), "'b' is inconsistent")
    result = t.vise_img("convert", "--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2", "a", "y")
    t.check("warning" in result.stderr and "'b'" in result.stderr, result)
    t.equal(Directory(t, "y").order, ["good"], "bitmaps")
    t.sound("y")


@cases(reason=["name", "size"])
def convert_into_an_image_that_cannot_take_them_changes_nothing(t, reason):
    t.qemu_img("create", "-q", "-f", "qcow2", "a", "1M")
    t.qemu_io("-f", "qcow2", "a", commands=["write -q -P 1 0 1M"])
    for name in ["first", "x"]:
        t.qemu_img("bitmap", "--add", "a", name)
    t.vise_img("create", "-q", "-f", "qcow2", "target", "2M" if reason == "size" else "1M")
    if reason == "name":
        t.vise_img("bitmap", "--add", "target", "x")
    t.fails_clearly(t.vise_img("convert", "--bitmaps", "-n", "-O", "qcow2", "a", "target", code=1),
                    "'x' already" if reason == "name" else "of 1048576 bytes")
    names = t.qemu_img("info", "--output=json", "target").json["format-specific"]["data"].get("bitmaps", [])
    t.equal([bitmap["name"] for bitmap in names], ["x"] if reason == "name" else [], "bitmaps")
    t.equal(len(t.map_of("vise_img", "target")), 1, "pieces of the disk, which is empty")


@case
def measure_counts_bitmaps_like_qemu(t):
    t.qemu_img("create", "-q", "-f", "qcow2", "a", "3G")
    for number, granularity in enumerate(["512", "4k", "64k", "1M"]):
        t.vise_img("bitmap", "--add", "-g", granularity, "a", "name" * (1 + 9 * number))
        for options in ["cluster_size=64k", "cluster_size=512", "cluster_size=2M", "compat=0.10"]:
            words = ["measure", "--output=json", "-O", "qcow2", "-o", options, "a"]
            t.equal(t.vise_img(*words).json, t.qemu_img(*words).json, f"sizes with {options}")
    t.equal(t.vise_img("measure", "-O", "qcow2", "a").stdout, t.qemu_img("measure", "-O", "qcow2", "a").stdout,
            "human text")


@case
def merging_from_another_image(t):
    for name, granularity in [("a", "4k"), ("s", "1M")]:
        t.vise_img("create", "-q", "-f", "qcow2", name, "10M")
        t.vise_img("bitmap", "--add", "-g", granularity, name, "b")
    t.vise_io("-f", "qcow2", "s", commands=["write 3M 1"])
    t.vise_io("-f", "qcow2", "a", commands=["write 0 1"])
    t.vise_img("bitmap", "--merge", "b", "-b", "s", "-F", "qcow2", "-f", "qcow2", "a", "b")
    t.equal(Directory(t, "a").extents("b"), [(0, 4096), (3 * MIB, MIB)], "dirty stretches")
    t.vise_img("bitmap", "--merge", "b", "-b", "a", "--image-opts", "driver=qcow2,file.filename=s", "b")
    t.equal(Directory(t, "s").extents("b"), [(0, MIB), (3 * MIB, MIB)], "dirty stretches")
    t.vise_img("create", "-q", "-f", "qcow2", "other", "11M")
    t.vise_img("bitmap", "--add", "other", "b")
    t.fails_clearly(t.vise_img("bitmap", "--merge", "b", "-b", "other", "a", "b", code=1), "bytes")
    for name in ["a", "s"]:
        t.sound(name)


@case
def the_command_line_is_checked_like_qemus(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a", "1M")
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "v2", "1M")
    t.vise_img("create", "-q", "-f", "qcow2", "empty", "0")
    t.vise_img("create", "-q", "-f", "raw", "r", "1M")
    for words in [["a", "b"], ["--add", "a"], ["--add", "-g", "1000", "a", "b"], ["--add", "-g", "256", "a", "b"],
                  ["--add", "-g", "4G", "a", "b"], ["--enable", "-g", "512", "a", "b"], ["--add", "-b", "x", "a", "b"],
                  ["--merge", "x", "-F", "qcow2", "a", "b"], ["--remove", "a", "b"], ["--merge", "x", "a", "b"],
                  ["--add", "v2", "b"], ["--add", "-f", "raw", "r", "b"], ["--add", "a", ""],
                  ["--add", "a", "x" * 1024], ["--add", "missing", "b"]]:
        before = {name: t.digest(name) for name in ["a", "v2", "r"]}
        t.qemu_img("bitmap", *words, code=1)
        t.fails_clearly(t.vise_img("bitmap", *words, code=1))
        t.equal({name: t.digest(name) for name in ["a", "v2", "r"]}, before, f"images after {words}")
    t.fails_clearly(t.vise_img("bitmap", "--add", "empty", "b", code=1), "empty")
    # What was done before an action fails stays done; the order is that of the command line.
    t.vise_img("bitmap", "--add", "--disable", "--add", "a", "b", code=1)
    t.equal(Directory(t, "a").flags("b"), 0, "flags")
    t.vise_img("bitmap", "--enable", "--clear", "--remove", "--add", "a", "b")
    t.equal(Directory(t, "a").flags("b"), 2, "flags")
    t.vise_img("bitmap", "--add", "a", "x" * 1023)
    t.sound("a")


@cases(size=["1536k", "40M", "300M"])
def bitmaps_follow_the_size_of_the_disk(t, size):
    for name in ["vise", "qemu"]:
        t.qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", name, "3M")
        t.qemu_img("bitmap", "--add", "-g", "512", name, "b")
        t.qemu_img("bitmap", "--add", "-g", "1M", name, "coarse")
        t.qemu_io("-f", "qcow2", name, commands=["write 1M 1M", "write 2800k 200k"])
    t.vise_io("-f", "qcow2", "vise", commands=[f"truncate {size}"])
    t.qemu_img("resize", "-q", "--shrink", "qemu", size)
    t.equal(Directory(t, "vise").summary(), Directory(t, "qemu").summary(), "bitmaps")
    t.sound("vise")


@case
def snapshots_beside_bitmaps(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a", "4M")
    t.vise_io("-f", "qcow2", "a", commands=["write -P 1 0 1M"])
    t.vise_img("snapshot", "-c", "one", "a")
    t.vise_img("bitmap", "--add", "a", "b")
    t.vise_io("-f", "qcow2", "a", commands=["write -P 2 0 512"])
    t.vise_img("snapshot", "-c", "two", "a")
    t.equal((Directory(t, "a").granules("b"), Directory(t, "a").flags("b")), ([0], 2), "bits")
    for program in ["qemu_img", "vise_img"]:  # what it brings back the bitmap would not know
        getattr(t, program)("snapshot", "-a", "one", "a", code=1)
    t.vise_img("convert", "-l", "one", "-O", "qcow2", "a", "old")
    t.vise_io("-r", "-f", "qcow2", "old", commands=["read -P 1 0 1M"])
    for program in ["qemu_img", "vise_img"]:  # the disk is the snapshot's, the bitmaps are the image's
        getattr(t, program)("convert", "-l", "one", "--bitmaps", "-O", "qcow2", "a", program)
        t.equal(Directory(t, program).granules("b"), [0], f"bits that {program} copied")
    t.vise_img("snapshot", "-d", "two", "a")
    t.equal(Directory(t, "a").granules("b"), [0], "bits")
    t.sound("a")
    t.vise_img("bitmap", "--remove", "a", "b")
    t.vise_img("snapshot", "-a", "one", "a")
    t.vise_io("-r", "-f", "qcow2", "a", commands=["read -P 1 0 1M"])
    t.sound("a")


@case
def many_bitmaps(t):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a", "8M")
    for number in range(40):
        t.vise_img("bitmap", "--add", "-g", "512", "a", f"bitmap number {number}")
    t.vise_io("-f", "qcow2", "a", commands=["write 0 8M"])
    t.equal(len(Directory(t, "a").granules("bitmap number 17")), 8 * MIB // 512, "bits")
    size = t.path("a").stat().st_size
    for _ in range(5):  # each session writes them anew and frees the old
        t.vise_io("-f", "qcow2", "a", commands=["write 0 1"])
    t.check(t.path("a").stat().st_size <= size + 200 * KIB, "the file grows with every session")
    t.sound("a")


main()
