# groups: rw auto
"""Two processes on one image: ours against ours and against QEMU, both ways."""
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


@case
def a_killed_writer_leaves_no_lock(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    first = t.hold("vise-io", "-f", "qcow2", "a.qcow2")
    first.command_line("write -P 1 0 64k")
    first.command_line("flush")
    first.kill()
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 1 0 64k"])


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
