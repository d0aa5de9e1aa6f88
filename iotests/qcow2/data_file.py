# groups: rw auto
"""Images with an external data file, made by us and by qemu-img, used by the other."""
from vise_iotest import *

OPTIONS = ["", ",data_file_raw=on", ",preallocation=metadata", ",data_file_raw=on,preallocation=falloc",
           ",extended_l2=on,preallocation=full", ",cluster_size=4k,data_file_raw=on"]
SIZE = 5 * MIB + 512
COMMANDS = ["write -P 1 0 100k", "write -P 2 3M 1M", "write -z 64k 64k", "discard 3M 256k",
            "write -P 3 5242880 512", "write -z -u 3500k 100k"]
EXPECTED = bytearray(SIZE)
EXPECTED[0:64 * KIB] = bytes([1]) * (64 * KIB)
EXPECTED[3 * MIB:4 * MIB] = bytes([2]) * MIB
EXPECTED[3 * MIB:3 * MIB + 256 * KIB] = bytes(256 * KIB)
EXPECTED[3500 * KIB:3600 * KIB] = bytes(100 * KIB)
EXPECTED[5 * MIB:] = bytes([3]) * 512


@cases(options=OPTIONS)
def create_makes_the_same_files_as_qemu_img(t, options):
    files = []
    for program in (t.vise_img, t.qemu_img):
        line = program("create", "-f", "qcow2", "-o", "data_file=d.raw" + options, "a.qcow2", 5 * MIB).stdout
        files.append((line, t.digest("a.qcow2"), t.digest("d.raw"), t.path("d.raw").stat().st_size))
        if "falloc" in options or "full" in options:
            t.check(t.allocated("d.raw") >= 5 * MIB, "the data file is not allocated")
    t.equal(files[0], files[1], "line and files")


@cases(options=OPTIONS, maker=["vise_img", "qemu_img"], writer=["vise_io", "qemu_io"])
def what_one_writes_both_read(t, options, maker, writer):
    getattr(t, maker)("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw" + options, "a.qcow2", SIZE)
    getattr(t, writer)("-d", "unmap", "-f", "qcow2", "a.qcow2", commands=COMMANDS)
    t.write("expected", bytes(EXPECTED))
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "expected")
    if "raw=on" in options:
        t.check(t.read("d.raw")[:SIZE] == bytes(EXPECTED), "the raw data file differs")
        t.check(not any(t.read("d.raw")[SIZE:]), "the raw data file has more data")
    data = t.vise_img("info", "--output=json", "a.qcow2").json["format-specific"]["data"]
    t.equal((data["data-file"], data["data-file-raw"]), ("d.raw", "raw=on" in options), "info")


@cases(raw=["", ",data_file_raw=on"])
def convert_into_a_data_file(t, raw):
    t.write("in.raw", mixed_data(3 * MIB, 64 * KIB, 5))
    t.vise_img("convert", "-O", "qcow2", "-o", "data_file=d.raw" + raw, "in.raw", "a.qcow2")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "in.raw")
    if raw:
        t.equal(t.digest("d.raw"), t.digest("in.raw"), "the raw data file")


@case
def a_name_is_relative_to_the_working_directory_as_in_qemu(t):
    for make, use in ((t.vise_img, t.qemu_io), (t.qemu_img, t.vise_io)):
        t.path("sub").mkdir(exist_ok=True)
        make("create", "-q", "-f", "qcow2", "-o", "data_file=here.raw", "sub/a.qcow2", "1M")
        t.check(t.path("here.raw").exists() and not t.path("sub/here.raw").exists(), "place")
        use("-f", "qcow2", "sub/a.qcow2", commands=["write -P 4 0 64k", "read -P 4 0 64k"])
        t.equal(t.read("here.raw")[:4], bytes([4]) * 4, "content")


@case
def compressed_writes_are_refused_clearly(t):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "a.qcow2", "1M")
    done = t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -c 0 64k"], code=1)
    t.check("Operation not supported" in done.output, done)
    t.write("in.raw", mixed_data(MIB, 64 * KIB, 5))
    t.fails_clearly(t.vise_img("convert", "-c", "-O", "qcow2", "-o", "data_file=e.raw", "in.raw",
                               "b.qcow2", code=1), "compress", "data file|data_file")
    t.qemu_img("convert", "-c", "-O", "qcow2", "-o", "data_file=e.raw", "in.raw", "b.qcow2", code=1)


@case
def amend_switches_raw_off_only(t):
    for program in (t.vise_img, t.qemu_img):
        program("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw,data_file_raw=on", "a.qcow2", "1M")
        program("amend", "-f", "qcow2", "-o", "data_file_raw=on", "a.qcow2")  # as it is
        program("amend", "-f", "qcow2", "-o", "data_file_raw=off", "a.qcow2")
        data = t.vise_img("info", "--output=json", "a.qcow2").json["format-specific"]["data"]
        t.equal(data["data-file-raw"], False, "data-file-raw")
        program("amend", "-f", "qcow2", "-o", "data_file_raw=on", "a.qcow2", code=1)
        t.sound("a.qcow2")
    t.fails_clearly(t.vise_img("amend", "-f", "qcow2", "-o", "data_file_raw=on", "a.qcow2", code=1),
                    "data_file_raw")


REFUSED = {
    "version 2": ("data_file=d.raw,compat=0.10", "data_file"),
    "raw without a data file": ("data_file_raw=on", "data_file_raw"),
    "raw with a backing file": ("data_file=d.raw,data_file_raw=on,backing_file=b,backing_fmt=raw",
                                "data_file_raw and backing_file"),
    "an empty name": ("data_file=", "data_file"),
    "a folder that is not there": ("data_file=nowhere/d.raw", "nowhere/d.raw"),
    "the image itself": ("data_file=a.qcow2", "a.qcow2"),
}


@cases(what=list(REFUSED))
def bad_options_leave_nothing_behind(t, what):
    options, text = REFUSED[what]
    t.write("b", bytes(MIB))
    t.fails_clearly(t.vise_img("create", "-f", "qcow2", "-o", options, "a.qcow2", "1M", code=1), text)
    t.equal(sorted(path.name for path in t.dir.iterdir()), ["b"], "files")


@case
def a_lost_data_file_is_an_error_but_not_for_info_and_check(t):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "a.qcow2", "1M")
    t.path("d.raw").unlink()
    t.fails_clearly(t.vise_io("-f", "qcow2", "a.qcow2", commands=["read 0 512"], code=1), "d.raw")
    t.vise_img("info", "a.qcow2")
    t.vise_img("check", "a.qcow2")


main()
