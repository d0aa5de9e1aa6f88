# groups: quick rw auto
"""vise-img bench: the lines qemu-img prints, the requests it says it sends, and nothing else."""
from vise_iotest import *


def image(t, size="1M"):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", size)
    return ["-f", "qcow2", "a.qcow2"]


def without_time(result):
    return re.sub(r"in \d+\.\d{3} seconds", "in X seconds", result.stdout), result.code


@cases(options=["", "-c 10", "-c 100 -d 3 -s 64k", "-c 7 -S 1M -o 512k", "-w -c 10", "-q -c 10",
                "-w -c 200 --flush-interval 64", "-w -c 200 -d 10 --flush-interval 64 --no-drain",
                "-w --pattern 0xff -c 10", "-c 5 --no-drain", "-t none -n -c 10", "-i threads -c 10",
                "-t unsafe -w -c 10", "--count 10 --depth 2 --buffer-size 512 --step-size 4k --offset 4k",
                "-U -c 10", "-o 1M", "-o 2M", "-s 2M", "-c -1", "-c 2G", "-d 2G", "-s 4G",
                "-S 2G", "-o -1", "--flush-interval 64", "-w --flush-interval 63", "--pattern 256",
                "--pattern x", "-w -U", "-n", "-i fast", "-t fast", "-x"])
def prints_what_qemu_img_prints(t, options):
    words = options.split()
    if "--count" in words:  # 7.2 has no long names
        short = {"--count": "-c", "--depth": "-d", "--buffer-size": "-s", "--step-size": "-S",
                 "--offset": "-o"}
    else:
        short = {}
    ours = without_time(t.vise_img("bench", *words, *image(t), code=None))
    theirs = without_time(t.qemu_img("bench", *[short.get(word, word) for word in words], *image(t),
                                     code=None))
    t.equal(ours, theirs, "output and exit status")


@cases(option=["-c", "-d", "-s", "-S"])
def nothing_at_all_is_refused(t, option):
    """(qemu-img 7.2 hangs at some.)"""
    t.fails_clearly(t.vise_img("bench", option, "0", *image(t), code=1), "from 1 to 2147483647")


@cases(options=["", "-s 64k -d 5", "-d 1 -S 8k -c 100", "-o 1000k -c 300", "-c 1000 -S 12k"])
def writes_what_it_says_and_wraps_at_the_end(t, options):
    words = options.split()
    numbers = {"-s": 4096, "-S": None, "-o": 0, "-c": 75000}
    for option, value in zip(words[::2], words[1::2]):
        numbers[option] = int(value.rstrip("k")) * (1024 if value.endswith("k") else 1)
    size, step = numbers["-s"], numbers["-S"] or numbers["-s"]
    t.vise_img("bench", "-w", "--pattern", "0xa5", *words, *image(t))
    expected, at = bytearray(MIB), numbers["-o"]
    for _ in range(numbers["-c"]):
        if at + size > MIB:
            at = at % MIB if at % MIB + size <= MIB else 0
        expected[at:at + size] = b"\xa5" * size
        at += step
    t.write("expected", expected)
    t.reads_as("a.qcow2", "expected")
    t.sound("a.qcow2")


@cases(drain=[True, False])
def flushes_as_often_as_asked(t, drain):
    """Every flush fails: a run that is over before the first one does not notice."""
    options = ("driver=blkdebug,image.driver=raw,image.file.filename=raw,inject-error.0.event=none,"
               "inject-error.0.iotype=flush")
    t.write("raw", bytes(MIB))
    for count, completes in ((63, True), (64, False), (200, False)):
        done = t.vise_img("bench", "-w", "-c", count, "-d", 4, "--flush-interval", 64,
                          *([] if drain else ["--no-drain"]), "--image-opts", options, code=0 if completes else 1)
        t.check(("Run completed" in done.stdout) == completes, done)


@case
def a_failed_request_ends_the_run(t):
    t.write("raw", bytes(MIB))
    failed = t.vise_img("bench", "-c", "10", "--image-opts",
                        "driver=blkdebug,image.driver=raw,image.file.filename=raw,"
                        "inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.sector=8",
                        code=1)
    t.fails_clearly(failed, "Failed request at offset 4096", "Input/output error")
    t.check("Run completed" not in failed.stdout, failed)


@case
def a_locked_image_is_not_touched(t):
    words = image(t)
    holder = t.hold("vise-io", *words)
    t.fails_clearly(t.vise_img("bench", "-c", "5", *words, code=1), "a.qcow2")
    t.vise_img("bench", "-U", "-c", "5", *words)
    holder.end()


@cases(aio=["threads", "io_uring", "native"])
def every_aio_mode_reaches_the_file(t, aio):
    """Also where the image is named by json: or by options."""
    words = image(t)
    t.vise_io(*words, commands=["write -P 3 0 1M"])
    cache = ["-t", "none"]
    for name in (words, ['json:{"driver": "qcow2", "file.filename": "a.qcow2"}'],
                 ["--image-opts", "driver=qcow2,file.driver=file,file.filename=a.qcow2"]):
        t.vise_img("bench", "-c", "20", "-i", aio, *cache, *name)
        t.vise_io("-i", aio, *cache, *name, commands=["read -P 3 0 1M"])
    t.fails_clearly(t.vise_io("-i", "fast", *words, commands=["read 0 512"], code=1), "aio")
    if aio == "native":
        t.fails_clearly(t.vise_io("-i", aio, *words, commands=["read 0 512"], code=1), "native")


main()
