# groups: rw auto
"""vise-img resize of qcow2: content, holes and counts afterwards, and what is refused."""
from vise_iotest import *


def size_of(t, image):
    return t.vise_img("info", "--output=json", image).json["virtual-size"]


def twin(t, size):
    data = bytearray(t.read("now"))[:size]
    t.write("now", bytes(data + bytes(size - len(data))))


@cases(options=["", "compat=0.10", "cluster_size=512", "extended_l2=on", "cluster_size=2M"])
def any_sequence_of_sizes(t, options):
    words = ["-o", options] if options else []
    t.vise_img("create", "-q", "-f", "qcow2", *words, "a.qcow2", "4M")
    t.write("now", mixed_data(4 * MIB, 8192, 1))
    t.vise_img("convert", "-n", "-f", "raw", "-O", "qcow2", "now", "a.qcow2")
    for size in [3 * MIB + 512, 5 * MIB, 70 * KIB + 1536, 20 * MIB, 512, 9 * MIB]:
        t.vise_img("resize", "-q", "--shrink", "a.qcow2", size)
        twin(t, size)
        t.equal(size_of(t, "a.qcow2"), size, "size")
        t.sound("a.qcow2")
        t.reads_as("a.qcow2", "now")
        t.vise_io("-f", "qcow2", "a.qcow2", commands=[f"write -q -P 7 {size - 512} 512"])
        t.write("now", t.read("now")[:size - 512] + bytes([7]) * 512)


# An L1 table longer than the clusters that one refcount block counts, with 64-bit counts above all.
@cases(refcount_bits=[8, 16, 32, 64])
def a_table_of_many_small_clusters(t, refcount_bits):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size=512,refcount_bits={refcount_bits}",
               "a.qcow2", "100M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 3 1M 2M"])
    t.vise_img("resize", "-q", "a.qcow2", "4G")
    t.sound("a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=[
        "read -P 3 1M 2M", "read -P 0 3M 97M", "write -q -P 4 3G 2M", "write -q -c -P 5 2G 2M"])
    t.qemu_io("-f", "qcow2", "a.qcow2", commands=["read -P 3 1M 2M", "read -P 4 3G 2M", "read -P 5 2G 2M"])
    t.sound("a.qcow2")
    t.check(os.path.getsize(t.path("a.qcow2")) < 64 * MIB, "the file has grown beyond its content")


@cases(program=["vise", "qemu"])
def what_a_shrink_cuts_off_never_comes_back(t, program):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "1M")
    for write in ["write -P 5 0 1M", "write -c -P 6 512k 64k"]:
        t.vise_io("-f", "qcow2", "a.qcow2", commands=[write])
    for size in [900 * KIB, 520 * KIB, 100 * KIB]:
        t.vise_img("resize", "-q", "--shrink", "a.qcow2", size)
        grow = t.vise_img if program == "vise" else t.qemu_img
        grow("resize", "-q", "a.qcow2", "1M")
        t.vise_io("-f", "qcow2", "a.qcow2", commands=[f"read -P 0 {size} {MIB - size}"])
        t.sound("a.qcow2")


@cases(overlay=["", "extended_l2=on"])
def a_longer_backing_file_stays_hidden(t, overlay):
    t.write("base", mixed_data(2 * MIB, 8192, 2))
    words = ["-o", overlay] if overlay else []
    t.vise_img("create", "-q", "-f", "qcow2", *words, "-b", "base", "-F", "raw", "a.qcow2", "100k")
    t.write("now", t.read("base")[:100 * KIB])
    for size in [200 * KIB, 300 * KIB + 512, 3 * MIB]:
        t.vise_img("resize", "-q", "a.qcow2", size)
        twin(t, size)
        t.sound("a.qcow2")
        t.reads_as("a.qcow2", "now")


@cases(mode=["off", "metadata", "falloc", "full"])
def version_2_hides_a_longer_backing_file_by_clusters(t, mode):
    t.write("base", mixed_data(2 * MIB, 8192, 2))
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", "base", "-F", "raw", "a.qcow2", "100k")
    t.write("q.qcow2", t.read("a.qcow2"))
    code = 1 if mode in ("off", "metadata") else 0
    words = ["resize", "-q", f"--preallocation={mode}"]
    t.equal(t.qemu_img(*words, "q.qcow2", "1M", code=None).code, code, "what qemu-img thinks of it")
    refused = t.vise_img(*words, "a.qcow2", "1M", code=code)
    if code:
        t.fails_clearly(refused, "falloc")
    t.write("now", t.read("base")[:100 * KIB])
    twin(t, 100 * KIB if code else MIB)
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "now")


@cases(mode=["metadata", "falloc", "full"],
       options=["", "extended_l2=on", "cluster_size=4k", "data_file=d.raw",
                "data_file=d.raw,data_file_raw=on"])
def preallocation_gives_space(t, mode, options):
    words = ["-o", options] if options else []
    create = t.qemu_img if "data_file" in options else t.vise_img
    create("create", "-q", "-f", "qcow2", *words, "a.qcow2", "1M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 3 0 700k", "discard -q 128k 256k"])
    t.vise_img("convert", "-O", "raw", "a.qcow2", "now")
    t.equal(t.vise_img("resize", f"--preallocation={mode}", "a.qcow2", "+3M").stdout,
            "Image resized.\n", "output")
    twin(t, 4 * MIB)
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "now")
    file = "d.raw" if "data_file" in options else "a.qcow2"
    if mode != "metadata":
        t.check(t.allocated(file) >= 3 * MIB, f"{t.allocated(file)} bytes allocated")
    length = t.path("a.qcow2").stat().st_size
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 9 1M 3M"])
    if "extended_l2" not in options:
        t.equal(t.path("a.qcow2").stat().st_size, length, "length of the file after writing")
    t.sound("a.qcow2")
    if "raw=on" in options:
        t.write("now", t.read("now")[:MIB] + bytes([9]) * 3 * MIB)
        t.vise_img("compare", "-f", "raw", "-F", "raw", "d.raw", "now")


@case
def sizes_are_given_as_always(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "10M")
    for words, size in [(["a.qcow2", "+5M"], 15), (["a.qcow2", "-2M", "--shrink"], 13),
                        (["-q", "--shrink", "a.qcow2", "-1M"], 12), (["a.qcow2", "++1M"], 13),
                        (["--shrink", "--", "a.qcow2", "-3M"], 10), (["a.qcow2", "16M"], 16)]:
        t.vise_img("resize", *words)
        t.equal(size_of(t, "a.qcow2"), size * MIB, " ".join(words))
    refused = t.vise_img("resize", "a.qcow2", "1M", code=1)
    t.check("warning:" in refused.stderr and "--shrink" in refused.stderr, refused)
    for words in [["a.qcow2", "0"], ["a.qcow2", "--shrink", "-16M"], ["a.qcow2", "-99M"],
                  ["a.qcow2", "+9223372036854775807"], ["a.qcow2", "1000"], ["a.qcow2", "x"],
                  ["a.qcow2"], ["a.qcow2", "1M", "2M"],
                  ["--shrink", "--preallocation=full", "a.qcow2", "1M"],
                  ["--preallocation=metadata", "a.qcow2", "16M"],
                  ["--preallocation=some", "a.qcow2", "20M"]]:
        t.vise_img("resize", *words, code=1)
        t.equal(size_of(t, "a.qcow2"), 16 * MIB, f"size after {words}")
    t.write("a.raw", bytes(1000))
    t.vise_img("resize", "-f", "raw", "a.raw", "1500")
    t.equal(t.path("a.raw").stat().st_size, 1536, "raw file")


@case
def snapshots_of_version_2_forbid_it(t):
    t.vise_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "a.qcow2", "1M")
    t.vise_img("snapshot", "-c", "x", "a.qcow2")
    t.fails_clearly(t.vise_img("resize", "a.qcow2", "2M", code=1), "version 2")
    t.sound("a.qcow2")


main()
