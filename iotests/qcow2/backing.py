# groups: rw auto
"""Backing chains: reading through them, writing into the top only, short and long chains."""
from qmp import Daemon
from vise_iotest import *


def make_chain(t, program, depth, size="4M"):
    """base.qcow2 … N.qcow2; link N writes byte N at cluster N and over part of cluster 0."""
    run_img, run_io = getattr(t, f"{program}_img"), getattr(t, f"{program}_io")
    run_img("create", "-f", "qcow2", "0.qcow2", size)
    for link in range(1, depth + 1):
        run_img("create", "-f", "qcow2", "-b", f"{link - 1}.qcow2", "-F", "qcow2", f"{link}.qcow2")
        run_io("-f", "qcow2", f"{link}.qcow2",
               commands=[f"write -P {link} {link * 64}k 64k", f"write -P {link} {link * 512} 512"])


@cases(program=["vise", "qemu"])
def a_chain_reads_through_to_its_base(t, program):
    make_chain(t, program, 5)
    expected = bytearray(4 * MIB)
    for link in range(1, 6):
        expected[link * 64 * KIB:(link + 1) * 64 * KIB] = bytes([link]) * (64 * KIB)
        expected[link * 512:(link + 1) * 512] = bytes([link]) * 512
    t.write("expected", bytes(expected))
    t.reads_as("5.qcow2", "expected")
    for link in range(6):
        t.sound(f"{link}.qcow2")
    if has("qemu-img"):
        t.equal(t.map_of("vise_img", "5.qcow2"), t.map_of("qemu_img", "5.qcow2"), "maps")
    chain = t.vise_img("info", "--backing-chain", "--output=json", "5.qcow2").json
    t.equal([entry["filename"] for entry in chain], [f"{n}.qcow2" for n in range(5, -1, -1)], "chain")


@case
def writes_stay_in_the_top_image(t):
    t.write("base.raw", mixed_data(2 * MIB, 64 * KIB, 1))
    before = t.digest("base.raw")
    t.vise_img("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2")
    t.vise_io("-f", "qcow2", "top.qcow2", commands=["write -P 7 100k 1000k", "write -z 1500k 10k"])
    expected = bytearray(t.read("base.raw"))
    expected[100 * KIB:1100 * KIB] = bytes([7]) * (1000 * KIB)
    expected[1500 * KIB:1510 * KIB] = bytes(10 * KIB)
    t.write("expected", bytes(expected))
    t.equal(t.digest("base.raw"), before, "backing image")
    t.sound("top.qcow2")
    t.reads_as("top.qcow2", "expected")


@cases(codec=CODECS)
def compressed_base_and_compressed_overlay(t, codec):
    t.write("raw", mixed_data(3 * MIB, 64 * KIB, 2))
    t.vise_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={codec}", "raw", "base.qcow2")
    t.vise_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2",
               "-o", f"compression_type={codec}", "top.qcow2")
    t.vise_io("--image-opts", "driver=compress,file.driver=qcow2,file.file.filename=top.qcow2",
              commands=["write -P 9 10k 4k", "write -P 10 640k 200k"])
    expected = bytearray(t.read("raw"))
    expected[10 * KIB:14 * KIB] = bytes([9]) * (4 * KIB)
    expected[640 * KIB:840 * KIB] = bytes([10]) * (200 * KIB)
    t.write("expected", bytes(expected))
    t.sound("top.qcow2")
    t.reads_as("top.qcow2", "expected")
    found = t.vise_img("check", "--output=json", "top.qcow2").json
    t.check(found.get("compressed-clusters", 0) >= 4, f"overlay is not compressed: {found}")


@case
def a_backing_file_whose_format_is_a_protocol(t):
    t.write("base.raw", mixed_data(2 * MIB, 64 * KIB, 1))
    t.vise_img("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2")
    t.qemu_img("rebase", "-u", "-f", "qcow2", "-b", "base.raw", "-F", "file", "top.qcow2")
    t.reads_as("top.qcow2", "base.raw")
    chain = t.vise_img("info", "--backing-chain", "--output=json", "top.qcow2").json
    t.equal([entry["format"] for entry in chain], ["qcow2", "file"])
    t.vise_img("create", "-f", "qcow2", "-b", "base.raw", "-F", "file", "other.qcow2")
    t.reads_as("other.qcow2", "base.raw")
    # What an image calls a protocol must still be a plain file name.
    t.qemu_img("rebase", "-u", "-f", "qcow2", "-b", "base.raw", "-F", "nbd", "top.qcow2")
    failed = t.vise_io("-f", "qcow2", "top.qcow2", commands=["read 0 512"], code=1)
    t.check("base.raw" in failed.stderr, failed)


@case
def a_backing_image_shorter_than_its_overlay(t):
    t.write("base.raw", mixed_data(100 * KIB + 512, 4096, 3))
    t.vise_img("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2", "1M")
    t.write("expected", t.read("base.raw") + bytes(MIB - 100 * KIB - 512))
    t.reads_as("top.qcow2", "expected")
    t.vise_io("-f", "qcow2", "top.qcow2", commands=["write -P 3 101k 512", "write -P 4 200k 4k"])
    expected = bytearray(t.read("expected"))
    expected[101 * KIB:101 * KIB + 512] = bytes([3]) * 512
    expected[200 * KIB:204 * KIB] = bytes([4]) * (4 * KIB)
    t.write("expected", bytes(expected))
    t.reads_as("top.qcow2", "expected")
    t.sound("top.qcow2")
    if has("qemu-img"):
        t.equal(t.map_of("vise_img", "top.qcow2"), t.map_of("qemu_img", "top.qcow2"), "maps")


@case
def sixty_four_images_in_a_chain(t):
    t.vise_img("create", "-f", "qcow2", "0.qcow2", "1M")
    t.vise_io("-f", "qcow2", "0.qcow2", commands=["write -P 99 512k 4k"])
    for link in range(1, 65):
        t.vise_img("create", "-q", "-f", "qcow2", "-b", f"{link - 1}.qcow2", "-F", "qcow2", "-u",
                   f"{link}.qcow2", "1M")
    t.vise_io("-f", "qcow2", "64.qcow2", commands=["write -P 1 0 4k", "read -P 99 512k 4k",
                                                   "read -P 0 516k 60k", "read -P 1 0 4k"])
    t.sound("64.qcow2")


@case
def a_chain_that_loops_is_refused(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    t.vise_img("create", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "b.qcow2")
    t.vise_img("create", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", "-u", "a.qcow2", "1M")
    t.fails_clearly(t.vise_img("convert", "-O", "raw", "b.qcow2", "out", code=1, timeout=30), "qcow2")


@case
def a_missing_backing_file_is_named(t):
    t.vise_img("create", "-f", "qcow2", "-b", "gone.qcow2", "-F", "qcow2", "-u", "top.qcow2", "1M")
    t.fails_clearly(t.vise_img("convert", "-O", "raw", "top.qcow2", "out", code=1), "gone.qcow2")
    t.equal(t.vise_img("info", "--output=json", "top.qcow2").json["backing-filename"], "gone.qcow2")


@case
def backing_names_are_relative_to_the_overlay(t):
    t.path("sub").mkdir()
    t.write("sub/base.raw", mixed_data(MIB, 4096, 4))
    t.vise_img("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "sub/top.qcow2")
    t.reads_as("sub/top.qcow2", "sub/base.raw")


@case
def convert_with_a_backing_file_stores_the_difference(t):
    t.write("base.raw", mixed_data(4 * MIB, 64 * KIB, 5))
    t.vise_img("convert", "-O", "qcow2", "base.raw", "base.qcow2")
    t.vise_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    t.vise_io("-f", "qcow2", "top.qcow2", commands=["write -P 5 1M 64k"])
    t.vise_img("convert", "-c", "-O", "qcow2", "-B", "base.qcow2", "-F", "qcow2", "top.qcow2",
               "small.qcow2")
    t.sound("small.qcow2")
    t.vise_img("compare", "top.qcow2", "small.qcow2")
    found = t.vise_img("check", "--output=json", "small.qcow2").json
    t.equal(found.get("allocated-clusters"), 1, "clusters stored")


@cases(compat=["0.10", "1.1"], way=["write -c -P 0 0 64k", "write -z 0 64k", "write -z -u 0 64k", "compress",
                                    "backup"])
def zeros_stay_when_only_the_header_names_the_backing_image(t, compat, way):
    t.vise_img("create", "-f", "qcow2", "base.qcow2", "1M")
    t.vise_io("base.qcow2", commands=["write -P 7 0 1M"])
    t.vise_img("create", "-f", "qcow2", "-o", f"compat={compat}", "-b", "base.qcow2", "-F", "qcow2", "a.qcow2")
    alone = "driver=qcow2,backing=,file.filename=a.qcow2"
    if way == "compress":
        t.qemu_io("a.qcow2", commands=["write -P 0 0 64k"])
        t.vise_img("compress", "--image-opts", alone)
    elif way == "backup":
        t.vise_img("convert", "-O", "qcow2", "base.qcow2", "disk.qcow2")
        t.vise_io("disk.qcow2", commands=["write -P 0 0 64k"])
        daemon = Daemon(t)
        for name, more in [("disk", {}), ("a", {"backing": None})]:
            daemon.execute("blockdev-add", {"driver": "qcow2", "node-name": name, **more,
                                            "file": {"driver": "file", "filename": f"{name}.qcow2"}})
        daemon.execute("blockdev-backup", job_id="j", device="disk", target="a", sync="full", compress=True)
        t.equal(daemon.qmp.wait_job("j")["event"], "BLOCK_JOB_COMPLETED")
        daemon.quit()
    else:
        t.vise_io("--image-opts", alone, commands=[way])
    t.qemu_io("a.qcow2", commands=["read -P 0 0 64k", "read -P 7 64k 64k"])
    t.sound("a.qcow2")


main()
