# groups: quick auto
"""vise-img convert's options: every one of them does what it says, and the combinations that make no
sense are refused."""
from vise_iotest import *


def source(t, size=4 * MIB):
    t.write("raw", mixed_data(size, 64 * KIB, 51))
    return "raw"


@cases(options=["", "-W", "-m 1", "-m 16", "-S 0", "-S 64k", "-p", "-q", "-T none", "-t none", "-U", "-r 200M",
                "-W -m 16 -S 4k -p -t writeback -T writeback"], target=["raw", "qcow2", "-c qcow2"])
def the_content_is_the_same_with(t, options, target):
    source(t)
    flags = target.split()[:-1]
    t.vise_img("convert", *options.split(), *flags, "-f", "raw", "-O", target.split()[-1], "raw", "out")
    t.reads_as("out", "raw", target.split()[-1])
    if target != "raw":
        t.sound("out")


@case
def a_rate_limit_slows_it_down(t):
    t.write("raw", random.Random(1).randbytes(4 * MIB))
    start = time.monotonic()
    t.vise_img("convert", "-r", "2M", "-f", "raw", "-O", "raw", "raw", "out")
    t.check(time.monotonic() - start > 0.8, "4 MiB at 2 MiB/s took less than 0.8 s")
    t.equal(t.digest("out"), t.digest("raw"), "content")


@case
def image_options_name_source_and_target(t):
    source(t)
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "4M")
    t.vise_img("convert", "-n", "--image-opts", "--target-image-opts", "driver=raw,file.filename=raw",
               "driver=qcow2,file.filename=a.qcow2")
    t.reads_as("a.qcow2", "raw")
    t.vise_img("convert", "-n", "--target-image-opts", "-f", "raw", "raw",
               "driver=qcow2,cache.direct=on,file.filename=a.qcow2")
    t.reads_as("a.qcow2", "raw")


@case
def creation_options_may_be_given_more_than_once(t):
    source(t)
    t.vise_img("convert", "-O", "qcow2", "-o", "cluster_size=4k", "-o", "compression_type=zstd,compat=1.1",
               "raw", "a.qcow2")
    info = t.vise_img("info", "--output=json", "a.qcow2").json
    t.equal((info["cluster-size"], info["format-specific"]["data"]["compression-type"]), (4096, "zstd"), "info")
    t.reads_as("a.qcow2", "raw")


@case
def file_names_with_commas_colons_and_blanks(t):
    source(t)
    for name in ("with,comma", "with blank", "dir/with:colon", "-dash", "ümlaut", "a%s"):
        t.path("dir").mkdir(exist_ok=True)
        t.vise_img("convert", "-O", "qcow2", "--", "raw", name)
        t.vise_img("compare", "-f", "raw", "-F", "qcow2", "--", "raw", name)
    t.vise_img("convert", "-O", "qcow2", "file:raw", "file:a:b")
    t.vise_img("compare", "-F", "qcow2", "raw", "./a:b")
    t.vise_img("convert", "-O", "qcow2", "raw", "nosuch:b", code=1)


@case
def a_target_that_holds_data_is_overwritten_whole(t):
    source(t)
    t.write("out", b"\xff" * (6 * MIB))
    t.vise_img("convert", "-f", "raw", "-O", "raw", "raw", "out")
    t.equal(t.digest("out"), t.digest("raw"), "content")
    t.write("out", b"\xff" * (6 * MIB))
    t.vise_img("convert", "-f", "raw", "-O", "qcow2", "raw", "out")
    t.reads_as("out", "raw")
    t.write("old.raw", b"\xff" * (4 * MIB))
    t.vise_img("convert", "-n", "-f", "raw", "-O", "raw", "raw", "old.raw")
    t.equal(t.digest("old.raw"), t.digest("raw"), "content with -n")


@case
def a_size_that_is_no_multiple_of_512_is_rounded_up(t):
    t.write("raw", b"x" * 1000)
    t.vise_img("convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "a.qcow2")
    t.equal(t.vise_img("info", "--output=json", "a.qcow2").json["virtual-size"], 1024, "size")
    t.vise_img("convert", "-O", "raw", "a.qcow2", "back")
    t.equal(t.read("back"), b"x" * 1000 + bytes(24), "content")


@cases(signal_name=["SIGINT", "SIGTERM", "SIGKILL"])
def an_interrupted_conversion_leaves_the_source_alone(t, signal_name):
    t.write("raw", random.Random(2).randbytes(8 * MIB))
    before = t.digest("raw")
    process = subprocess.Popen([t.tools / "vise-img", "convert", "-c", "-r", "1M", "-O", "qcow2", "raw", "a.qcow2"],
                               cwd=t.dir, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not t.path("a.qcow2").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(getattr(signal, signal_name))
    t.check(process.wait(20) != 0, "exit status 0")
    t.equal(t.digest("raw"), before, "source")
    t.vise_img("convert", "-c", "-O", "qcow2", "raw", "a.qcow2")
    t.reads_as("a.qcow2", "raw")


@cases(cluster_size=["512", "64k", "2M"], codec=["zstd"])
def peak_memory_does_not_grow_with_the_image(t, cluster_size, codec):
    """A conversion of 320 MiB of data takes no more memory than one of a GiB would."""
    with open(t.path("raw"), "wb") as raw:
        for seed in range(8):
            raw.write(mixed_data(1 * MIB, 64 * KIB, seed) * 40)
    command = [t.tools / "vise-img", "convert", "-c", "-O", "qcow2", "-o",
               f"cluster_size={cluster_size},compression_type={codec}", "raw", "a.qcow2"]
    # Meson sets MALLOC_PERTURB_, which touches memory that is only reserved.
    env = {name: value for name, value in os.environ.items() if name != "MALLOC_PERTURB_"}
    process = subprocess.Popen(command, cwd=t.dir, env=env)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    t.equal(process.returncode, 0, "exit status")
    limit = 1024 if os.environ.get("VISE_SANITIZED") else 96
    t.check(usage.ru_maxrss <= limit * 1024, f"peak memory {usage.ru_maxrss / 1024:.0f} MiB")


main()
