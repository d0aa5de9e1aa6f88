# groups: rw auto
"""A conversion's output is the same bytes whatever the number of workers, -m or -W, the kind of
file I/O or the format the source is read from."""
from vise_iotest import *


@cases(codec=CODECS, cluster_size=["4k", "64k", "2M"])
def same_bytes_with_any_number_of_workers(t, codec, cluster_size):
    t.write("raw", mixed_data(16 * MIB + 512, 100 * KIB, 1))
    arguments = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
                 f"compression_type={codec},cluster_size={cluster_size}"]
    variants = {"1 worker": ([], {"VISE_WORKERS": "1"}), "2 workers": ([], {"VISE_WORKERS": "2"}),
                "8 workers": ([], {"VISE_WORKERS": "8"}), "-m 1": (["-m", "1"], {}),
                "-m 16": (["-m", "16"], {}), "-W": (["-W"], {}),
                "-W -m 16": (["-W", "-m", "16"], {"VISE_WORKERS": "8"}),
                "no io_uring": ([], {"VISE_IO_URING": "0"}), "-p": (["-p"], {})}
    digests = {}
    for name, (options, env) in variants.items():
        t.vise_img(*arguments, *options, "raw", "a.qcow2", env=env)
        digests[name] = t.digest("a.qcow2")
    t.equal(set(digests.values()), {digests["1 worker"]}, f"files: {digests}")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "raw")


@case
def same_bytes_for_plain_conversion(t):
    t.write("raw", mixed_data(16 * MIB, 100 * KIB, 2))
    digests = []
    for options in ([], ["-W"], ["-m", "1"], ["-W", "-m", "16"]):
        t.vise_img("convert", "-f", "raw", "-O", "qcow2", *options, "raw", "a.qcow2")
        digests.append(t.digest("a.qcow2"))
    t.check(len(set(digests)) == 1, digests)


@case
def same_bytes_from_raw_and_from_qcow2(t):
    t.write("raw", mixed_data(8 * MIB, 64 * KIB, 3))
    t.vise_img("convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "a.qcow2")
    t.vise_img("convert", "-f", "qcow2", "-O", "qcow2", "a.qcow2", "plain.qcow2")
    t.vise_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", "plain.qcow2", "b.qcow2")
    t.equal(t.digest("a.qcow2"), t.digest("b.qcow2"), "files")


@cases(codec=CODECS, how=["as stored", "recompressed"])
def same_bytes_for_a_rebase(t, codec, how):
    """Compressed and other clusters of the old backing file, mixed, with parts that do not differ."""
    options = ["-o", f"compression_type={codec},cluster_size=16k"]
    first = mixed_data(12 * MIB, 40 * KIB, 5)
    second = bytearray(first)
    second[MIB:5 * MIB] = mixed_data(4 * MIB, 30 * KIB, 6)
    t.write("first.raw", first)
    t.write("second.raw", bytes(second))
    t.vise_img("convert", "-c", "-O", "qcow2", *options, "first.raw", "base.qcow2")
    t.vise_img("convert", "-c", "-O", "qcow2", *options, "-B", "base.qcow2", "-F", "qcow2",
               "second.raw", "middle.qcow2")
    t.vise_io("-f", "qcow2", "middle.qcow2",
              commands=[f"write -q -P {i} {7 * MIB + i * 70 * KIB} 9k" for i in range(1, 20)])
    t.vise_img("convert", "-O", "raw", "middle.qcow2", "expected")
    more = ["--recompress"] if how == "recompressed" else []
    digests = {}
    for workers in ("1", "2", "8"):
        t.vise_img("create", "-q", "-f", "qcow2", *options, "-b", "middle.qcow2", "-F", "qcow2",
                   "top.qcow2")
        t.vise_img("rebase", "-c", *more, "-b", "base.qcow2", "-F", "qcow2", "top.qcow2",
                   env={"VISE_WORKERS": workers})
        digests[workers] = t.digest("top.qcow2")
    t.equal(set(digests.values()), {digests["1"]}, f"files: {digests}")
    t.sound("top.qcow2")
    t.reads_as("top.qcow2", "expected")


@cases(env=[{"VISE_IO_URING": "0"}, {"VISE_IO_URING": "1"}])
def images_work_with_and_without_io_uring(t, env):
    t.write("raw", mixed_data(4 * MIB, 64 * KIB, 4))
    t.vise_img("convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "a.qcow2", env=env)
    t.vise_io("-f", "qcow2", "a.qcow2", env=env,
              commands=["write -P 1 5k 100k", "aio_write -P 2 1M 64k", "aio_flush", "flush",
                        "read -P 1 5k 100k", "read -P 2 1M 64k"])
    t.vise_img("check", "a.qcow2", env=env)
    t.sound("a.qcow2")
    t.vise_img("convert", "-O", "raw", "a.qcow2", "back", env=env)
    t.reads_as("a.qcow2", "back")


main()
