# groups: rw auto
"""convert -C: the host copies from file to file, the content is what it is without, and where the file
system can, the two share their space."""
from vise_iotest import *


def copied_bytes(t, *words, code=0):
    """Runs `vise-img convert -C`; returns how much copy_file_range copied, None without strace."""
    if not shutil.which("strace") or os.environ.get("VISE_SANITIZED"):
        t.vise_img("convert", "-C", *words, code=code)
        return None
    t.run("strace", "-f", "-e", "trace=copy_file_range", "-o", "calls", t.tools / "vise-img", "convert",
          "-C", *words, code=code)
    calls = t.path("calls").read_text()
    return sum(int(result) for result in re.findall(
        r"copy_file_range(?:\(.*|.*resumed>.*)\) = (\d+)", calls))


def expect_copied(t, found, least):
    t.check(found is None or found >= least, f"the host copied {found} bytes, not {least}")


def make_source(t, form, size):
    """An image in one of many forms, and in `content` what is in it. Returns what convert needs."""
    content = bytearray(mixed_data(size, 128 * KIB, 5))
    t.write("content", content)
    if form == "raw":
        t.vise_img("convert", "-O", "raw", "content", "source")
        return ["-f", "raw", "source"]
    options = {"qcow2": "cluster_size=64k", "small clusters": "cluster_size=4k",
               "data file": "data_file=source.data", "extended": "extended_l2=on,cluster_size=128k"}
    t.vise_img("convert", "-O", "qcow2", "-o", options.get(form, "compat=1.1"), "content", "source")
    if form == "overlay":
        t.vise_img("create", "-q", "-f", "qcow2", "-b", "source", "-F", "qcow2", "top", size + 512)
        content += bytes(512)
        t.vise_io("-f", "qcow2", "top", commands=["write -q -P 3 1M 64k", "write -q -z 2M 192k"])
        content[MIB:MIB + 64 * KIB] = b"\3" * (64 * KIB)
        content[2 * MIB:2 * MIB + 192 * KIB] = bytes(192 * KIB)
    if form == "snapshot":
        t.vise_img("snapshot", "-c", "s", "source")
        t.vise_io("-f", "qcow2", "source", commands=["write -q -P 3 0 4M"])
        return ["-f", "qcow2", "-l", "s", "source"]
    if form == "compressed too":
        t.vise_io("-f", "qcow2", "source", commands=["write -q -c -P 3 1M 256k", "write -q -c -P 4 3M 1M"])
        content[MIB:MIB + 256 * KIB] = b"\3" * (256 * KIB)
        content[3 * MIB:4 * MIB] = b"\4" * MIB
    t.write("content", content)
    return ["-f", "qcow2", "top" if form == "overlay" else "source"]


@cases(source=["raw", "qcow2", "small clusters", "data file", "extended", "overlay", "snapshot",
               "compressed too"],
       target=["raw", "qcow2", "small clusters", "data file", "extended"])
def the_content_is_the_same(t, source, target):
    size = 6 * MIB + 3 * 512
    words = make_source(t, source, size)
    options = {"small clusters": ["-o", "cluster_size=512"], "data file": ["-o", "data_file=data"],
               "extended": ["-o", "extended_l2=on"]}
    form = ["-O", "raw" if target == "raw" else "qcow2", *options.get(target, [])]
    found = copied_bytes(t, *form, *words, "target")
    expect_copied(t, found, MIB)
    t.reads_as("target", "content", form[1])
    if target != "raw":
        t.sound("target")
        # Where each cluster lies does not depend on how many chunks are on their way.
        t.vise_img("convert", "-C", "-m", 1, *form, *words, "again")
        t.check(target == "data file" or t.digest("again") == t.digest("target"), "layouts differ")


@cases(target=["raw", "qcow2"])
def over_what_is_there(t, target):
    """-n: clusters that are there are written in place, what snapshots share is not."""
    words = make_source(t, "qcow2", 4 * MIB)
    t.vise_img("create", "-q", "-f", target, "target", "5M")
    t.vise_io("-f", target, "target", commands=["write -q -P 9 0 5M"])
    if target == "qcow2":
        t.vise_img("snapshot", "-c", "s", "target")
        t.vise_io("-f", target, "target", commands=["write -q -P 8 512k 1M"])
    expect_copied(t, copied_bytes(t, "-n", "-O", target, *words, "target"), MIB)
    t.write("expected", t.read("content") + b"\x09" * MIB)
    t.reads_as("target", "expected", target)
    if target == "qcow2":
        t.sound("target")
        t.vise_img("convert", "-l", "s", "-O", "raw", "target", "old")
        t.equal(t.read("old"), b"\x09" * (5 * MIB), "the snapshot")


@cases(cache=[("none", "writeback"), ("writeback", "none"), ("none", "none"), ("writeback", "writethrough")])
def with_any_cache_mode(t, cache):
    words = make_source(t, "qcow2", 3 * MIB + 512)
    found = copied_bytes(t, "-T", cache[0], "-t", cache[1], "-O", "qcow2", *words, "target")
    expect_copied(t, found, 512 * KIB)
    t.reads_as("target", "content")
    t.sound("target")


@cases(target=["raw", "qcow2"])
def to_another_file_system(t, target):
    """Which the kernel refuses: all is read and written, and zeros are found."""
    t.tmpfs("other", "32M")
    t.write("source", b"\1" * MIB + bytes(3 * MIB) + b"\2" * (4 * MIB) + mixed_data(MIB, 4096, 3))
    t.vise_img("convert", "-C", "-f", "raw", "-O", target, "source", "other/target")
    t.reads_as("other/target", "source", target)
    if target == "qcow2":
        t.sound("other/target")
    t.check(t.allocated("other/target") < 7 * MIB, f"{t.allocated('other/target')} bytes allocated")


@case
def a_full_target_is_told(t):
    t.tmpfs("small", "4M")
    t.write("small/source", b"\1" * (3 * MIB))
    for target in ["raw", "qcow2"]:
        done = t.vise_img("convert", "-C", "-f", "raw", "-O", target, "small/source", "small/target", code=1)
        t.fails_clearly(done, "error while writing at byte 0", "No space left")
        t.path("small/target").unlink()


@case
def several_sources_behind_one_another(t):
    t.write("a", mixed_data(MIB + 700, 65536, 1))
    t.write("b", mixed_data(2 * MIB, 65536, 2))
    t.write("expected", t.read("a") + bytes(-len(t.read("a")) % 512) + t.read("b"))
    t.vise_img("convert", "-C", "-f", "raw", "-O", "qcow2", "a", "b", "target")
    t.reads_as("target", "expected")
    t.sound("target")


def used(path):
    status = os.statvfs(path)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@cases(source=["raw", "qcow2"], target=["raw", "qcow2"])
def space_is_shared_where_the_file_system_can(t, source, target):
    t.reflink_fs("shared", 512 * MIB)
    t.write("content", random.Random(1).randbytes(32 * MIB))
    t.vise_img("convert", "-f", "raw", "-O", source, "content", "shared/source")
    os.sync()
    before = used(t.path("shared"))
    t.vise_img("convert", "-C", "-f", source, "-O", target, "shared/source", "shared/target")
    os.sync()
    taken = used(t.path("shared")) - before
    t.check(taken < 4 * MIB, f"the copy of 32 MiB takes up {taken} bytes")
    t.reads_as("shared/target", "content", target)
    # What is written afterwards is not shared.
    t.vise_io("-f", target, "shared/target", commands=["write -q -P 1 0 32M"])
    t.reads_as("shared/source", "content", source)


@case
def it_excludes_what_looks_at_the_data(t):
    t.write("source", bytes(MIB))
    for options in [["-c", "-O", "qcow2"], ["-S", "4k"], ["--salvage"]]:
        for run in (t.vise_img, t.qemu_img):
            done = run("convert", "-C", *options, "source", "target", code=1)
            t.check(run is not t.vise_img or "-C" in done.stderr, done)
    t.check(not t.path("target").exists(), "something was made")


main()
