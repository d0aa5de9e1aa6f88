# groups: rw auto
"""The state of a virtual machine, which lies behind the end of the disk: read and written by vise-io -b
and qemu-io -b, kept by snapshots, listed and carried along like qemu-img does."""
import struct

from vise_iotest import *

FORMS = ["", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "compat=0.10", "refcount_bits=64"]


def make(t, options="", name="a.qcow2", size="5M"):
    words = ["-o", options] if options else []
    t.vise_img("create", "-q", "-f", "qcow2", *words, name, size)
    t.vise_io("-f", "qcow2", name, commands=["write -q -P 1 0 1M"])
    return name


def set_vm_state_size(t, name, size):
    """What a guest's savevm notes in the entry of the only snapshot."""
    table = struct.unpack(">Q", t.read(name)[64:72])[0]
    t.patch(name, table + 32, struct.pack(">I", size))
    t.patch(name, table + 40, struct.pack(">Q", size))


def snapshots(t, name):
    return [{key: value for key, value in snapshot.items() if "date" not in key and key != "icount"}
            for snapshot in t.qemu_img("info", "--output=json", name).json.get("snapshots", [])]


@cases(options=FORMS, writer=["vise", "qemu"])
def what_one_program_saves_the_other_loads(t, options, writer):
    make(t, options)
    write, read = (t.vise_io, t.qemu_io) if writer == "vise" else (t.qemu_io, t.vise_io)
    done = write("-f", "qcow2", "a.qcow2", commands=[
        "write -b -P 7 0 200k", "write -b -P 8 1M 3M", "write -b -P 9 512 1k", "write -P 2 5119k 1k"])
    t.check("wrote 204800/204800 bytes at offset 0" in done.stdout, done)
    for run in (read, write):
        run("-r", "-f", "qcow2", "a.qcow2", commands=[
            "read -b -P 7 0 512", "read -b -P 9 512 1k", "read -b -P 7 1536 198k",
            "read -b -P 0 200k 824k", "read -b -P 8 1M 3M", "read -b -P 0 4M 1M",
            "read -P 1 0 1M", "read -P 0 1M 4095k", "read -P 2 5119k 1k"])
    t.sound("a.qcow2")


@cases(options=FORMS)
def it_stays_with_its_snapshot(t, options):
    make(t, options)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -b -P 7 0 200k"])
    t.vise_img("snapshot", "-c", "one", "a.qcow2")
    t.sound("a.qcow2")
    # It is the snapshot's now: the next one starts without.
    t.vise_io("-f", "qcow2", "a.qcow2", commands=[
        "read -b -P 0 0 200k", "write -b -P 8 64k 64k", "write -P 2 0 1M"])
    t.vise_img("snapshot", "-c", "two", "a.qcow2")
    for program in (t.vise_img, t.qemu_img):
        for name, state, data in (("one", "7 0 200k", 1), ("two", "8 64k 64k", 2)):
            program("snapshot", "-a", name, "a.qcow2")
            t.sound("a.qcow2")
            for run in (t.vise_io, t.qemu_io):
                run("-r", "-f", "qcow2", "a.qcow2", commands=[f"read -b -P {state}",
                                                              f"read -P {data} 0 1M"])
    t.vise_img("snapshot", "-d", "one", "a.qcow2")
    t.sound("a.qcow2")
    t.vise_img("snapshot", "-a", "two", "a.qcow2")
    t.vise_io("-r", "-f", "qcow2", "a.qcow2", commands=["read -b -P 8 64k 64k", "read -b -P 0 0 64k"])
    t.vise_img("snapshot", "-d", "two", "a.qcow2")
    t.sound("a.qcow2")


@cases(options=["", "cluster_size=512", "extended_l2=on", "compat=0.10"])
def compressed_in_place_it_is_still_there(t, options):
    """`compress` takes it along with what the snapshot holds; no writer starts out with that."""
    make(t, options)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -b -P 7 0 1M", "write -b -P 8 1M 200k"])
    t.vise_img("snapshot", "-c", "one", "a.qcow2")
    t.vise_img("compress", "-q", "--compact", "a.qcow2")
    t.sound("a.qcow2")
    t.vise_img("snapshot", "-a", "one", "a.qcow2")
    for run in (t.vise_io, t.qemu_io):
        run("-r", "-f", "qcow2", "a.qcow2", commands=[
            "read -b -P 7 0 1M", "read -b -P 7 512 1k", "read -b -P 8 1M 200k", "read -P 1 0 1M"])
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -b -P 9 1k 30k", "read -b -P 9 1k 30k",
                                                  "read -b -P 7 0 1k", "read -b -P 7 31k 900k"])
    t.sound("a.qcow2")


@cases(maker=["vise", "qemu"], compat=["0.10", "1.1"])
def its_size_is_kept_and_listed(t, maker, compat):
    make(t, f"compat={compat}")
    img, io = (t.vise_img, t.vise_io) if maker == "vise" else (t.qemu_img, t.qemu_io)
    io("-f", "qcow2", "a.qcow2", commands=["write -b -P 7 0 200k"])
    img("snapshot", "-c", "state", "a.qcow2")
    set_vm_state_size(t, "a.qcow2", 200 * KIB)
    expected = snapshots(t, "a.qcow2")
    t.equal([s["vm-state-size"] for s in expected], [200 * KIB], "size of the state")
    t.check("   200 KiB " in t.vise_img("snapshot", "-l", "a.qcow2").stdout, "the list")

    def check(operation):
        t.sound("a.qcow2")
        t.equal(snapshots(t, "a.qcow2")[:1], expected, f"the snapshot after {operation}")
        ours = t.vise_img("info", "--output=json", "a.qcow2").json["snapshots"][0]
        t.equal(ours["vm-state-size"], 200 * KIB, "size that we tell")

    t.vise_img("snapshot", "-c", "other", "a.qcow2")
    check("snapshot -c")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 3 0 1M", "write -b -P 5 0 200k"])
    t.vise_img("snapshot", "-d", "other", "a.qcow2")
    check("snapshot -d")
    t.vise_img("convert", "-l", "state", "-O", "raw", "a.qcow2", "state.raw")
    t.equal(t.read("state.raw"), b"\1" * MIB + bytes(4 * MIB), "what convert -l shows")
    if compat == "1.1":
        t.vise_img("resize", "-q", "a.qcow2", "700M")
        check("growth")
        t.vise_img("resize", "-q", "--shrink", "a.qcow2", "3M")
        check("shrinking")
        t.vise_img("amend", "-o", "refcount_bits=32", "a.qcow2")
        check("amend")
    t.vise_img("snapshot", "-a", "state", "a.qcow2")
    check("snapshot -a")
    for run in (t.vise_io, t.qemu_io):
        run("-r", "-f", "qcow2", "a.qcow2", commands=["read -b -P 7 0 200k", "read -P 1 0 1M", "length"])
    if compat == "1.1":
        t.vise_img("amend", "-o", "refcount_bits=16", "a.qcow2")
        t.vise_img("amend", "-o", "compat=0.10", "a.qcow2")
        check("amend to version 2")


@case
def growth_does_not_show_it_on_the_disk(t):
    for size in ("6M", "520M", "2G"):
        make(t)
        t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -b -P 7 0 4M", "write -b -P 7 600M 1M"])
        t.vise_img("resize", "-q", "a.qcow2", size)
        t.sound("a.qcow2")
        t.vise_img("create", "-q", "-f", "raw", "zero.raw", size)
        t.vise_io("-f", "raw", "zero.raw", commands=["write -q -P 1 0 1M"])
        t.reads_as("a.qcow2", "zero.raw")


@case
def a_longer_backing_file_does_not_show_through(t):
    t.vise_img("create", "-q", "-f", "raw", "base.raw", "1G")
    t.vise_io("-f", "raw", "base.raw", commands=["write -q -P 9 500M 40M"])
    t.vise_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "a.qcow2", "5M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=[
        "read -b -P 0 0 1M", "write -b -P 3 512 512", "read -b -P 0 0 512", "read -b -P 3 512 512",
        "read -b -P 0 1k 1M"])
    t.sound("a.qcow2")


@case
def it_is_reached_through_filters(t):
    make(t)
    t.vise_io("--image-opts", "driver=throttle,throttle-group=g,file.driver=qcow2,file.file.filename=a.qcow2",
              "--object", "throttle-group,id=g", commands=["write -b -P 7 0 64k", "read -b -P 7 0 64k"])
    t.qemu_io("-r", "-f", "qcow2", "a.qcow2", commands=["read -b -P 7 0 64k"])


@case
def what_has_no_place_for_it_says_so(t):
    t.vise_img("create", "-q", "-f", "raw", "a.raw", "1M")
    for command, verb in (("write -b 0 64k", "write"), ("read -b 0 64k", "read")):
        ours = t.vise_io("-f", "raw", "a.raw", commands=[command], code=1)
        theirs = t.qemu_io("-f", "raw", "a.raw", commands=[command], code=1)
        t.equal(ours.stdout, theirs.stdout, "output")
        t.check(f"{verb} failed: Operation not supported" in ours.stdout, ours)
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "d.qcow2", "1M")
    before = t.read("d.raw")
    done = t.vise_io("-f", "qcow2", "d.qcow2", commands=["write -b 0 64k"], code=1)
    t.check("external data file" in done.stderr, done)
    t.equal(t.read("d.raw"), before, "data file")
    make(t)
    for command in ("read -b 100 512", "write -b 0 513", "write -b 1 512", "read -b 0 10"):
        ours = t.vise_io("-f", "qcow2", "a.qcow2", commands=[command], code=1)
        theirs = t.qemu_io("-f", "qcow2", "a.qcow2", commands=[command], code=1)
        t.equal(ours.stdout, theirs.stdout, command)
    t.fails_clearly(t.vise_io("-r", "-f", "qcow2", "a.qcow2", commands=["write -b 0 512"], code=1),
                    "read-only")
    done = t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -b 4095T 64k"], code=1)
    t.check("beyond" in done.stderr and "File too large" in done.stdout, done)
    t.sound("a.qcow2")


main()
