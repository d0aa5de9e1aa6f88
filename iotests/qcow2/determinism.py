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
