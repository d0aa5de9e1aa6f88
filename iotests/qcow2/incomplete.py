# groups: rw auto
"""An image that is still being made says so: whoever opens one that an interrupted convert or dd has
left is told "incomplete image", our programs as well as QEMU's; making it again starts over."""
import time

from vise_iotest import *

KILLS = 24


def write_source(t, size=12 * MIB):
    t.write("raw", mixed_data(size, 64 * KIB, 1))
    return "raw"


def kill_after(t, seconds, *arguments):
    """Runs vise-img with a.qcow2 as its target and kills it after that time."""
    process = subprocess.Popen([str(t.tools / "vise-img"), *arguments], cwd=t.dir, env=t.env)
    try:
        time.sleep(seconds)
    finally:
        process.kill()
        process.wait()
    # The kernel lets go of files in an io_uring, and so of their locks, a little later.
    deadline = time.monotonic() + 10
    while t.path("a.qcow2").exists() and time.monotonic() < deadline:
        if "lock" not in t.vise_img("info", "-f", "raw", "a.qcow2", code=None).stderr:
            break


def refused_everywhere(t, image):
    opened = ["read 0 512"]
    for arguments in (["info"], ["check"], ["check", "-r", "all"], ["map"],
                      ["convert", "-O", "raw"], ["compare", "-F", "raw"]):
        operands = {"convert": [image, "out"], "compare": [image, "raw"]}.get(arguments[0], [image])
        result = t.vise_img(*arguments, "-f", "qcow2", *operands, code=[1, 2])
        t.fails_clearly(result, "incomplete")
    t.fails_clearly(t.vise_io("-f", "qcow2", image, commands=opened, code=1), "incomplete")
    t.fails_clearly(t.vise_img("info", image, code=1), "incomplete")
    if has("qemu-img"):
        for command in ("info", "check"):
            theirs = t.qemu_img(command, image, code=1)
            t.check("incomplete image" in theirs.stderr, theirs)


def state_after_kill(t, image):
    """absent: not begun; incomplete, and refused by everybody; whole: like the source."""
    if not t.path(image).exists() or t.path(image).stat().st_size == 0:
        return "absent"
    features = int.from_bytes(t.read(image)[72:80], "big")
    if features >> 62 & 1:
        refused_everywhere(t, image)
        return "incomplete"
    t.reads_as(image, "raw")
    return "whole"


@cases(compressed=[False, True], existing=[False, True])
def killed_conversions_are_refused_and_start_over(t, compressed, existing):
    write_source(t)
    flags = ["-c"] if compressed else []
    command = ["convert", *flags, "-f", "raw", "-O", "qcow2", "-r", "64M", "raw", "a.qcow2"]
    source = random.Random(compressed + 2 * existing)
    t.vise_img(*command)
    if not existing:
        t.path("a.qcow2").unlink()
    states = []
    for _ in range(KILLS):
        kill_after(t, source.uniform(0.002, 0.2), *command)
        states.append(state_after_kill(t, "a.qcow2"))
    t.check(states.count("incomplete") >= KILLS // 3, f"too few kills hit the conversion: {states}")
    t.vise_img(*command)
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "raw")


@cases(cluster_size=["512", "4k", "2M"])
def every_cluster_size_names_the_mark(t, cluster_size):
    write_source(t)
    kill_after(t, 0.3, "convert", "-O", "qcow2", "-o", f"cluster_size={cluster_size}", "-r", "4M", "raw",
               "a.qcow2")
    t.equal(state_after_kill(t, "a.qcow2"), "incomplete", "state")


@case
def a_failed_conversion_leaves_the_mark(t):
    """The target is full: what is there of it is not an image."""
    write_source(t)
    folder = t.tmpfs("small", "4M")
    result = t.vise_img("convert", "-f", "raw", "-O", "qcow2", "raw", folder / "a.qcow2", code=1)
    t.fails_clearly(result, "No space left")
    t.path("a.qcow2").symlink_to(folder / "a.qcow2")
    t.equal(state_after_kill(t, "a.qcow2"), "incomplete", "state")


@case
def interrupted_dd_is_refused(t):
    write_source(t, 96 * MIB)
    states = []
    for step in range(40):
        kill_after(t, 0.01 * (step + 1), "dd", "-O", "qcow2", "if=raw", "of=a.qcow2")
        states.append(state_after_kill(t, "a.qcow2"))
        if "incomplete" in states:
            break
    t.check("incomplete" in states, f"no kill hit the copy: {states}")
    t.vise_img("dd", "-O", "qcow2", "if=raw", "of=a.qcow2")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "raw")


@case
def an_image_that_was_there_before_is_never_marked(t):
    """With -n the target holds more than this copy: an interrupted one must not lock its owner out."""
    write_source(t)
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "16M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 7 14M 64k"])
    for seconds in (0.02, 0.1, 0.15):
        kill_after(t, seconds, "convert", "-n", "-O", "qcow2", "-r", "64M", "raw", "a.qcow2")
        t.vise_img("check", "-r", "leaks", "a.qcow2")
        t.vise_io("-r", "-f", "qcow2", "a.qcow2", commands=["read -P 7 14M 64k"])


@case
def a_finished_image_has_nothing_of_it_but_the_name(t):
    write_source(t)
    t.vise_img("convert", "-O", "qcow2", "raw", "a.qcow2")
    t.equal(int.from_bytes(t.read("a.qcow2")[72:80], "big"), 0, "incompatible features")
    t.vise_img("rebase", "-u", "-b", "raw", "-F", "raw", "a.qcow2")  # writes the header anew
    t.check(b"incomplete" not in t.read("a.qcow2")[:64 * KIB], "the name outlives the next header")


main()
