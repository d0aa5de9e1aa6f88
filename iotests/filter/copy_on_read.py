# groups: quick rw auto
"""copy-on-read: what is read from backing images is in the image on top afterwards, as with QEMU."""
from vise_iotest import *

SIZE = 4 * MIB


def chain(t):
    t.write("base.raw", mixed_data(SIZE // 2, 64 * KIB, 5))
    t.vise_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "mid.qcow2", SIZE)
    t.vise_io("-f", "qcow2", "mid.qcow2", commands=["write -q -P 3 1M 256k"])
    t.vise_img("create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2", SIZE)


def reads(seed):
    random_source = random.Random(seed)
    result = []
    for _ in range(20):
        offset = random_source.randrange(SIZE)
        length = min(random_source.choice([1, 512, 5000, 70000, 300000]), SIZE - offset)
        result.append(f"read -q {offset} {length}")
    return result


@cases(seed=[1, 2, 3])
def the_same_is_copied_as_by_qemu(t, seed):
    installed("qemu-io")
    maps = []
    for program in (t.vise_io, t.qemu_io):
        chain(t)
        t.vise_img("convert", "-O", "raw", "top.qcow2", "expected")
        program("-C", "-f", "qcow2", "top.qcow2", commands=reads(seed))
        t.sound("top.qcow2")
        t.reads_as("top.qcow2", "expected")
        maps.append(program("-f", "qcow2", "top.qcow2", commands=["map"]).stdout.split("\n")[:-1])
        maps[-1] = [line for line in maps[-1] if "allocated" in line]
    t.equal([line.split("io> ")[-1] for line in maps[0]], [line.split("io> ")[-1] for line in maps[1]], "maps")


@case
def everything_read_is_there_without_the_backing_image(t):
    chain(t)
    t.vise_img("convert", "-O", "raw", "top.qcow2", "expected")
    t.vise_io("-C", "-f", "qcow2", "top.qcow2", commands=[f"read -q 0 {SIZE}"])
    t.vise_img("convert", "--image-opts", "-O", "raw", "driver=qcow2,backing=,file.filename=top.qcow2",
               "alone")
    t.equal(t.digest("alone"), t.digest("expected"), "content")


@case
def below_the_bottom_nothing_is_copied(t):
    chain(t)
    options = ("driver=copy-on-read,bottom=mid,file.driver=qcow2,file.file.filename=top.qcow2,"
               "file.backing.driver=qcow2,file.backing.node-name=mid,file.backing.file.filename=mid.qcow2")
    t.vise_io("--image-opts", options, commands=[f"read -q 0 {SIZE}"])
    allocated = t.vise_io("-f", "qcow2", "top.qcow2", commands=["alloc 0 1M", "alloc 1M 256k", "alloc 1280k 2M"])
    for text in ("0/1048576 bytes", "262144/262144 bytes", "0/2097152 bytes"):
        t.check(text in allocated.stdout, allocated)


@case
def reads_and_writes_at_once_lose_nothing(t):
    chain(t)
    commands = []
    for n in range(32):
        commands += [f"aio_read -q {n * 128 * KIB} 128k", f"aio_write -q -P {n + 1} {n * 128 * KIB + 1000} 70000"]
    commands += ["aio_flush"]
    commands += [f"read -q -P {n + 1} {n * 128 * KIB + 1000} 70000" for n in range(32)]
    t.vise_io("-C", "-f", "qcow2", "top.qcow2", commands=commands)
    t.sound("top.qcow2")


main()
