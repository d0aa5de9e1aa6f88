# groups: rw auto
"""vise-img rebase and commit: what the disk holds stays, whatever lies below."""
from vise_iotest import *

SIZE = 3 * MIB + 1536


def overlay(t, name, backing, options="", size=SIZE):
    words = ["-o", options] if options else []
    t.vise_img("create", "-q", "-f", "qcow2", *words, "-b", backing, "-F",
               "raw" if backing.endswith(".raw") else "qcow2", name, size)


def bases(t):
    """Two images that agree in parts and differ in length."""
    first = bytearray(mixed_data(SIZE - 40 * KIB, 32 * KIB, 1))
    second = bytearray(first[:2 * MIB])
    second[300 * KIB:500 * KIB] = mixed_data(200 * KIB, 8192, 2)
    first[900 * KIB:1000 * KIB] = bytes(100 * KIB)
    t.write("first.raw", bytes(first))
    t.write("second.raw", bytes(second))


def write_some(t, image):
    t.vise_io("-f", "qcow2", image, commands=[
        "write -q -P 1 100k 70k", "write -q -z 400k 200k", "write -q -c -P 2 1M 64k",
        "write -q -P 3 1537k 512"])


def contents(t, image):
    t.vise_img("convert", "-O", "raw", image, "expected")


@cases(options=["", "compat=0.10", "cluster_size=512", "extended_l2=on", "cluster_size=2M"],
       how=["plain", "compressed"])
def the_content_survives_a_rebase(t, options, how):
    bases(t)
    overlay(t, "top.qcow2", "first.raw", options)
    if "2M" not in options:
        write_some(t, "top.qcow2")
    contents(t, "top.qcow2")
    words = ["-c"] if how == "compressed" else []
    for backing, format in [("second.raw", "raw"), ("first.raw", "raw"), ("", None)]:
        t.equal(t.vise_img("rebase", *words, "-b", backing, *(["-F", format] if format else []),
                           "top.qcow2").output, "", "output")
        t.sound("top.qcow2")
        t.reads_as("top.qcow2", "expected")
        info = t.vise_img("info", "--output=json", "top.qcow2").json
        t.equal(info.get("backing-filename", ""), backing, "backing file")
    if how == "compressed" and options == "":
        found = t.vise_img("check", "--output=json", "top.qcow2").json
        t.check(found.get("compressed-clusters", 0) > 10, f"not compressed: {found}")


@cases(options=["", "compat=0.10", "extended_l2=on", "cluster_size=512"])
def an_image_without_a_backing_file_gets_one(t, options):
    bases(t)
    t.vise_img("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), "top.qcow2", SIZE)
    write_some(t, "top.qcow2")
    contents(t, "top.qcow2")
    t.vise_img("rebase", "-b", "second.raw", "-F", "raw", "top.qcow2")
    t.sound("top.qcow2")
    t.reads_as("top.qcow2", "expected")


@case
def a_rebase_takes_over_no_more_than_it_must(t):
    bases(t)
    t.vise_img("convert", "-f", "raw", "-O", "qcow2", "first.raw", "base.qcow2")
    overlay(t, "mid.qcow2", "base.qcow2")
    t.vise_io("-f", "qcow2", "mid.qcow2", commands=["write -q -P 9 640k 128k"])
    overlay(t, "top.qcow2", "mid.qcow2")
    contents(t, "top.qcow2")
    t.vise_img("rebase", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    t.reads_as("top.qcow2", "expected")
    t.equal(t.vise_img("check", "--output=json", "top.qcow2").json.get("allocated-clusters"), 2,
            "clusters taken over")


@cases(options=["", "compat=0.10", "extended_l2=on", "cluster_size=512"],
       how=["plain", "compressed"])
def what_lies_behind_the_old_backing_file_stays_zero(t, options, how):
    t.write("short.raw", mixed_data(500 * KIB, 32 * KIB, 1))
    t.write("long.raw", mixed_data(MIB, 32 * KIB, 2))
    overlay(t, "top.qcow2", "short.raw", options, size=MIB)
    contents(t, "top.qcow2")
    t.vise_img("rebase", *(["-c"] if how == "compressed" else []), "-b", "long.raw", "-F", "raw",
               "top.qcow2")
    t.sound("top.qcow2")
    t.reads_as("top.qcow2", "expected")


@cases(how=["plain", "compressed"])
def what_a_short_image_in_between_hides_stays_hidden(t, how):
    t.write("base.raw", mixed_data(MIB, 32 * KIB, 1))
    overlay(t, "short.qcow2", "base.raw", size=256 * KIB)
    overlay(t, "long.qcow2", "short.qcow2", size=MIB)
    overlay(t, "top.qcow2", "long.qcow2", size=MIB)
    t.vise_io("-f", "qcow2", "top.qcow2", commands=["write -q -P 5 640k 64k"])
    contents(t, "top.qcow2")
    t.vise_img("rebase", *(["-c"] if how == "compressed" else []), "-b", "base.raw", "-F", "raw",
               "top.qcow2")
    t.sound("top.qcow2")
    t.reads_as("top.qcow2", "expected")


@case
def qemu_img_and_we_take_over_the_same(t):
    bases(t)
    for name in ["ours.qcow2", "theirs.qcow2"]:
        overlay(t, name, "first.raw")
        write_some(t, name)
    contents(t, "ours.qcow2")
    t.vise_img("rebase", "-p", "-b", "second.raw", "-F", "raw", "ours.qcow2")
    t.qemu_img("rebase", "-b", "second.raw", "-F", "raw", "theirs.qcow2")
    for name in ["ours.qcow2", "theirs.qcow2"]:
        t.sound(name)
        t.reads_as(name, "expected")


@case
def an_unsafe_rebase_changes_only_the_name(t):
    bases(t)
    overlay(t, "top.qcow2", "first.raw")
    write_some(t, "top.qcow2")
    before = t.vise_img("check", "--output=json", "top.qcow2").json
    t.vise_img("rebase", "-u", "-b", "gone/nowhere.qcow2", "-F", "qcow2", "top.qcow2")
    info = t.vise_img("info", "--output=json", "top.qcow2").json
    t.equal(info["backing-filename"], "gone/nowhere.qcow2", "name")
    t.equal(info["backing-filename-format"], "qcow2", "format")
    t.vise_img("rebase", "-u", "top.qcow2")
    info = t.vise_img("info", "--output=json", "top.qcow2").json
    t.check("backing-filename" not in info, "the backing file must be gone")
    t.equal(t.vise_img("check", "--output=json", "top.qcow2").json, before, "check")
    t.vise_img("rebase", "-u", "-b", "first.raw", "-F", "raw", "top.qcow2")
    t.sound("top.qcow2")
    for words in [["top.qcow2"], ["-b", "first.raw", "top.qcow2"], ["-u", "-b", "x" * 1024, "-F",
                  "raw", "top.qcow2"], ["-b", "gone.raw", "-F", "raw", "top.qcow2"],
                  ["-b", "top.qcow2", "-F", "qcow2", "top.qcow2"]]:
        t.fails_clearly(t.vise_img("rebase", *words, code=1))
    t.equal(t.vise_img("info", "--output=json", "top.qcow2").json["backing-filename"], "first.raw",
            "name after failures")


@cases(base=["raw", "qcow2"], options=["", "compat=0.10", "extended_l2=on", "cluster_size=512"])
def a_commit_moves_the_difference_down(t, base, options):
    bases(t)
    if base == "qcow2":
        t.vise_img("convert", "-f", "raw", "-O", "qcow2", "first.raw", "base.qcow2")
    name = "first.raw" if base == "raw" else "base.qcow2"
    overlay(t, "top.qcow2", name, options)
    write_some(t, "top.qcow2")
    contents(t, "top.qcow2")
    t.equal(t.vise_img("commit", "top.qcow2").output, "Image committed.\n", "output")
    t.reads_as(name, "expected", format=base)
    t.reads_as("top.qcow2", "expected")
    t.sound("top.qcow2")
    if base == "qcow2":
        t.sound("base.qcow2")
    t.check("allocated-clusters" not in t.vise_img("check", "--output=json", "top.qcow2").json or
            t.vise_img("check", "--output=json", "top.qcow2").json["allocated-clusters"] == 0,
            "the overlay must be empty")
    write_some(t, "top.qcow2")
    t.sound("top.qcow2")


@case
def a_commit_goes_as_deep_as_told(t):
    bases(t)
    t.vise_img("convert", "-f", "raw", "-O", "qcow2", "first.raw", "base.qcow2")
    overlay(t, "mid.qcow2", "base.qcow2")
    t.vise_io("-f", "qcow2", "mid.qcow2", commands=["write -q -P 9 640k 128k"])
    overlay(t, "top.qcow2", "mid.qcow2", size=4 * MIB)
    write_some(t, "top.qcow2")
    contents(t, "top.qcow2")
    before = t.digest("top.qcow2")
    t.fails_clearly(t.vise_img("commit", "-b", "second.raw", "top.qcow2", code=1), "second.raw")
    t.equal(t.vise_img("commit", "-q", "-b", "./base.qcow2", "top.qcow2").output, "", "output")
    t.equal(t.digest("top.qcow2"), before, "the overlay")
    t.reads_as("base.qcow2", "expected")
    for image in ["top.qcow2", "mid.qcow2", "base.qcow2"]:
        t.sound(image)
    shown = t.vise_img("commit", "-d", "-p", "mid.qcow2").stdout
    t.check(shown.startswith("    (0.00/100%)\r") and shown.endswith("Image committed.\n"), shown)
    t.fails_clearly(t.vise_img("commit", "base.qcow2", code=1), "backing")


@case
def a_commit_empties_an_image_with_snapshots(t):
    bases(t)
    overlay(t, "top.qcow2", "first.raw")
    write_some(t, "top.qcow2")
    t.vise_img("convert", "-O", "raw", "top.qcow2", "before")
    t.vise_img("snapshot", "-c", "x", "top.qcow2")
    t.vise_io("-f", "qcow2", "top.qcow2", commands=["write -q -P 8 0 200k"])
    contents(t, "top.qcow2")
    t.vise_img("commit", "-q", "top.qcow2")
    t.sound("top.qcow2")
    t.reads_as("top.qcow2", "expected")


@case
def dd_copies_parts(t):
    t.write("a.raw", mixed_data(MIB + 1000, 4096, 5))
    whole = t.read("a.raw") + bytes(24 + 0)
    t.vise_img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2")
    for words, start, end in [([], 0, None), (["bs=1k", "count=4", "skip=1"], 1024, 4096),
                              (["bs=1M", "skip=1"], MIB, None), (["count=3"], 0, 1536),
                              (["bs=3", "count=1000", "skip=7"], 21, 3000)]:
        for format in ["raw", "qcow2"]:
            found = t.vise_img("dd", "-f", "qcow2", "-O", format, *words, "if=a.qcow2", "of=out")
            t.equal(found.output, "", "output")
            t.vise_img("convert", "-f", format, "-O", "raw", "out", "out.raw")
            part = whole[start:end]
            t.equal(t.read("out.raw"), part + bytes(-len(part) % 512), f"{words} {format}")
    told = t.vise_img("dd", "bs=1M", "skip=9", "if=a.qcow2", "of=out")
    t.check("skip" in told.stderr, told)
    for words in [["if=a.qcow2"], ["if=a.qcow2", "of=x", "bs=0"], ["if=a.qcow2", "of=x", "seek=1"],
                  ["if=a.qcow2", "of=x", "y"], ["if=gone", "of=x"]]:
        t.fails_clearly(t.vise_img("dd", *words, code=1))


main()
