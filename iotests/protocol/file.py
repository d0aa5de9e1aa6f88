# groups: quick auto
"""The file, raw and null drivers under our programs: cache modes, aio, holes, windows, zero detection."""
from vise_iotest import *


@cases(cache=["writeback", "none", "off", "writethrough", "directsync", "unsafe"],
       format=["raw", "qcow2"])
def every_cache_mode_writes_and_reads(t, cache, format):
    t.vise_img("create", "-f", format, "a", "2M")
    t.vise_io("-t", cache, "-f", format, "a", commands=[
        "write -P 1 0 64k", "write -P 2 1000 3000", "write -P 3 1M 100k", "flush",
        "read -P 1 0 1000", "read -P 2 1000 3000", "read -P 1 4000 61536", "read -P 3 1M 100k"])
    t.vise_io("-r", "-f", format, "a", commands=["read -P 2 1000 3000", "read -P 0 1200k 100k"])


@cases(mode=["none", "writeback", "directsync", "unsafe"])
def convert_with_every_cache_mode(t, mode):
    t.write("raw", mixed_data(5 * MIB + 512, 64 * KIB, 1))
    t.vise_img("convert", "-t", mode, "-T", mode, "-c", "-O", "qcow2", "raw", "a.qcow2")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "raw")
    t.vise_img("convert", "-t", mode, "-T", mode, "-O", "raw", "a.qcow2", "back")
    t.equal(t.digest("back"), t.digest("raw"), "content")


@cases(aio=["threads", "io_uring"])
def every_kind_of_file_io(t, aio):
    t.vise_img("create", "-f", "raw", "a", "2M")
    t.vise_io("--image-opts", f"driver=raw,file.driver=file,file.filename=a,file.aio={aio}",
              commands=["write -P 1 0 64k", "aio_write -P 2 64k 64k", "aio_flush", "read -P 2 64k 64k",
                        "flush"])
    t.equal(t.read("a")[:131072], bytes([1]) * 65536 + bytes([2]) * 65536, "file")


@case
def holes_are_kept_by_convert(t):
    with open(t.path("raw"), "wb") as file:
        file.truncate(64 * MIB)
        file.seek(10 * MIB)
        file.write(b"x" * 65536)
    t.vise_img("convert", "-O", "raw", "raw", "copy")
    t.equal(t.digest("copy"), t.digest("raw"), "content")
    t.check(t.allocated("copy") <= MIB, f"{t.allocated('copy')} bytes allocated")
    t.vise_img("convert", "-O", "raw", "-S", "0", "raw", "full")
    t.equal(t.digest("full"), t.digest("raw"), "content")
    t.check(t.allocated("full") >= 64 * MIB, f"{t.allocated('full')} bytes allocated with -S 0")


@case
def map_of_a_sparse_file_is_qemus(t):
    with open(t.path("raw"), "wb") as file:
        file.truncate(16 * MIB)
        for offset in (0, 5 * MIB, 16 * MIB - 65536):
            file.seek(offset)
            file.write(b"x" * 65536)
    t.equal(t.map_of("vise_img", "raw", "-f", "raw"), t.map_of("qemu_img", "raw", "-f", "raw"), "maps")
    for more in (["-s", "1M", "-l", "6M"], ["-s", "100"], ["-s", "5M", "-l", "1"]):
        t.equal(t.map_of("vise_img", "raw", "-f", "raw", *more),
                t.map_of("qemu_img", "raw", "-f", "raw", *more), f"maps with {more}")


@case
def zero_writes_make_holes(t):
    t.write("a", b"x" * (4 * MIB))
    t.vise_io("-d", "unmap", "-f", "raw", "a", commands=["write -z -u 1M 2M", "read -P 0 1M 2M", "read -P 120 0 1M"])
    t.check(t.allocated("a") <= 2 * MIB + 64 * KIB, f"{t.allocated('a')} bytes allocated")
    t.vise_io("-d", "unmap", "-f", "raw", "a", commands=["discard 0 1M"])
    t.check(t.allocated("a") <= MIB + 64 * KIB, f"{t.allocated('a')} bytes allocated after discard")
    t.vise_io("-d", "ignore", "-f", "raw", "a", commands=["discard 3M 1M", "read -P 120 3M 1M"])


@cases(detect=["on", "unmap"])
def zero_detection_keeps_zeroes_out_of_the_image(t, detect):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "4M")
    t.vise_io("--image-opts", f"driver=qcow2,detect-zeroes={detect},discard=unmap,file.filename=a.qcow2",
              commands=["write -P 0 0 1M", "write -P 1 1M 64k", "read -P 0 0 1M"])
    found = t.vise_img("map", "--output=json", "a.qcow2").json
    t.equal(sum(entry["length"] for entry in found if entry["data"]), 64 * KIB, "data bytes")
    t.sound("a.qcow2")


@case
def a_window_into_a_raw_file(t):
    t.write("a", b"a" * MIB + b"b" * MIB + b"c" * MIB)
    window = "driver=raw,offset=1M,size=1M,file.filename=a"
    t.vise_io("--image-opts", window, commands=["length", "read -P 98 0 1M", "write -P 100 4k 4k"])
    t.vise_io("--image-opts", window, commands=["read 1M 512"], code=1)
    data = t.read("a")
    t.equal(data[:MIB], b"a" * MIB, "before the window")
    t.equal(data[MIB + 4096:MIB + 8192], b"d" * 4096, "in the window")
    t.equal(data[2 * MIB:], b"c" * MIB, "after the window")
    t.vise_img("convert", "--image-opts", "-O", "raw", window, "out")
    t.equal(t.read("out"), data[MIB:2 * MIB], "converted window")


@cases(driver=["null-co", "null-aio"])
def null_drivers(t, driver):
    t.vise_io("--image-opts", f"driver={driver},size=1M,read-zeroes=on",
              commands=["length", "read -P 0 0 1M", "write 0 1M", "flush"])
    t.vise_io("--image-opts", f"driver={driver},size=1M", commands=["read 2M 512"], code=1)


@cases(preallocation=["off", "falloc", "full"])
def raw_preallocation(t, preallocation):
    t.vise_img("create", "-f", "raw", "-o", f"preallocation={preallocation}", "a", "4M")
    t.equal(t.path("a").stat().st_size, 4 * MIB, "size")
    allocated = t.allocated("a")
    t.check(allocated <= 4096 if preallocation == "off" else allocated >= 4 * MIB, f"{allocated} bytes")


@case
def a_probed_raw_image_cannot_turn_into_another_format(t):
    t.vise_img("create", "-f", "raw", "a", "1M")
    t.vise_img("create", "-q", "-f", "qcow2", "header", "1M")
    t.write("start", t.read("header")[:512])
    probed = t.vise_io("a", commands=["write -s start 0 512"], code=1)
    t.check("WARNING" in probed.stderr, probed)
    t.equal(t.read("a")[:512], bytes(512), "first sector")
    t.vise_io("-f", "raw", "a", commands=["write -s start 0 512"])
    t.equal(t.read("a")[:512], t.read("start"), "first sector when told raw")


main()
