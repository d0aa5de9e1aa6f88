# groups: rw auto
"""Two processes on one image: ours against ours and against QEMU, both ways."""
import shlex
import subprocess
import time

from vise_iotest import *

PAIRS = [("vise-io", "vise"), ("vise-io", "qemu"), ("qemu-io", "vise")]


@cases(pair=PAIRS)
def a_second_writer_is_refused(t, pair):
    holder, other = pair
    if "qemu" in pair:
        installed("qemu-io")
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    first = t.hold(holder, "-f", "qcow2", "a.qcow2")
    first.command_line("write -P 1 0 64k")
    run_io, run_img = getattr(t, f"{other}_io"), getattr(t, f"{other}_img")
    for refused in (run_io("-f", "qcow2", "a.qcow2", commands=["write -P 2 0 64k"], code=1),
                    run_io("-r", "-f", "qcow2", "a.qcow2", commands=["read 0 64k"], code=1),
                    run_img("info", "a.qcow2", code=1),
                    run_img("create", "-f", "qcow2", "a.qcow2", "2M", code=1),
                    run_img("convert", "-O", "raw", "a.qcow2", "out", code=1)):
        t.check(re.search("lock", refused.stderr), refused)
        if other == "vise":
            t.fails_clearly(refused, "Failed to get .*lock", "a.qcow2")
    t.equal(run_img("info", "-U", "--output=json", "a.qcow2").json["virtual-size"], MIB, "with -U")
    first.command_line("read -P 1 0 64k")
    t.equal(first.end(), 0, "exit status of the first writer")
    run_io("-f", "qcow2", "a.qcow2", commands=["read -P 1 0 64k", "write -P 2 0 64k"])
    t.sound("a.qcow2")


@cases(pair=PAIRS)
def readers_share_and_keep_writers_out(t, pair):
    holder, other = pair
    if "qemu" in pair:
        installed("qemu-io")
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    first = t.hold(holder, "-r", "-f", "qcow2", "a.qcow2")
    run_io = getattr(t, f"{other}_io")
    run_io("-r", "-f", "qcow2", "a.qcow2", commands=["read -P 0 0 64k"])
    refused = run_io("-f", "qcow2", "a.qcow2", commands=["write -P 2 0 64k"], code=1)
    t.check("lock" in refused.stderr, refused)
    t.equal(first.end(), 0, "exit status of the reader")


@case
def force_share_reads_a_held_image(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    first = t.hold("vise-io", "-f", "qcow2", "a.qcow2")
    first.command_line("write -P 1 0 64k")
    first.command_line("flush")
    t.vise_io("-r", "-U", "-f", "qcow2", "a.qcow2", commands=["read -P 1 0 64k"])
    t.fails_clearly(t.vise_img("check", "-r", "all", "-U", "a.qcow2", code=1))
    t.vise_io("-U", "-f", "qcow2", "a.qcow2", commands=["read 0 512"], code=1)
    first.end()


READING = ["info IMAGE", "info -U IMAGE", "check IMAGE", "check -U IMAGE", "map IMAGE", "map -U IMAGE",
           "measure IMAGE", "measure -U IMAGE", "compare IMAGE IMAGE", "compare -U IMAGE IMAGE",
           "convert IMAGE out", "convert -U IMAGE out", "dd if=IMAGE of=out", "dd -U if=IMAGE of=out",
           "bench -c 5 IMAGE", "bench -U -c 5 IMAGE", "create -f qcow2 -b IMAGE -F FORMAT new",
           "check -r all -U IMAGE", "bench -w -U -c 5 IMAGE"]
WRITING = ["snapshot -c x IMAGE", "rebase -u -b '' IMAGE", "bitmap --add IMAGE b",
           "amend -o lazy_refcounts=on IMAGE", "bench -w -c 5 IMAGE", "create -f raw IMAGE 1M",
           "resize IMAGE 2M"]


@cases(format=["qcow2", "raw"], holder=["qemu-io", "vise-io"], mode=["", "-r", "-r -U"])
def an_image_in_use_is_let_in_and_kept_out_as_by_qemu_img(t, format, holder, mode):
    """Raw images claim nothing: others may read and write them. Images of a format do."""
    installed("qemu-img")
    t.vise_img("create", "-q", "-f", format, "image", "1M")
    held = t.hold(holder, "-f", format, *mode.split(), "image")
    wrong = []
    for line in READING + (WRITING if not (mode or format == "raw") else ["create -f raw IMAGE 1M"]):
        if mode and line.startswith("create -f raw"):
            continue  # qemu-img cuts off what others read, we do not
        name, *words = shlex.split(line.replace("IMAGE", "image").replace("FORMAT", format))
        form = {"compare": ["-f", format, "-F", format], "create": [], "snapshot": []}.get(name, ["-f", format])
        codes = [program(name, *form, *words, code=None).code for program in (t.qemu_img, t.vise_img)]
        if codes[0] != codes[1]:
            wrong.append(f"{line}: {codes[1]}, not {codes[0]}")
    t.equal(held.end(), 0, "exit status of the holder")
    t.check(not wrong, "\n".join(wrong))


@case
def what_others_read_is_not_made_anew_under_them(t):
    t.write("image", b"x" * MIB)
    held = t.hold("vise-io", "-r", "-f", "raw", "image")
    t.fails_clearly(t.vise_img("create", "-f", "qcow2", "image", "1M", code=1), "lock")
    t.equal(t.read("image"), b"x" * MIB, "the image")
    held.end()


@case
def a_killed_writer_leaves_no_lock(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    first = t.hold("vise-io", "-f", "qcow2", "a.qcow2")
    first.command_line("write -P 1 0 64k")
    first.command_line("flush")
    first.kill()
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 1 0 64k"])


@case
def a_program_killed_while_it_syncs_leaves_no_lock(t):
    for attempt in range(24):
        t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "64M")
        t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q 0 60M"])
        words = [t.tools / "vise-img", "amend", "-o", "refcount_bits=64", "a.qcow2"]
        running = subprocess.Popen(words, cwd=t.dir, env=t.env, stderr=subprocess.DEVNULL)
        time.sleep(attempt % 12 * 0.005)
        running.kill()
        running.wait()
        t.vise_img("check", "-q", "-r", "leaks", "a.qcow2")


@case
def locking_can_be_switched_off(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    first = t.hold("vise-io", "--image-opts",
                   "driver=qcow2,file.driver=file,file.filename=a.qcow2,file.locking=off")
    t.vise_io("-r", "-f", "qcow2", "a.qcow2", commands=["read 0 512"])
    first.end()


@case
def the_filter_locks_like_the_image_below_it(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    first = t.hold("vise-io", "--image-opts",
                   "driver=compress,file.driver=qcow2,file.file.filename=a.qcow2")
    t.fails_clearly(t.vise_io("-f", "qcow2", "a.qcow2", commands=["write 0 512"], code=1), "lock")
    first.end()


@case
def convert_onto_its_own_source_fails_and_keeps_it(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 1 0 64k"])
    t.vise_img("convert", "-O", "qcow2", "a.qcow2", "a.qcow2", code=1)
    t.vise_io("-r", "-f", "qcow2", "a.qcow2", commands=["read -P 1 0 64k"])


main()
