# groups: quick rw auto
"""preallocate below qcow2, and blkverify above it."""
from vise_iotest import *

OPTIONS = "driver=qcow2,file.driver=preallocate,file.prealloc-size=8M,file.file.filename=a.qcow2"


@case
def the_file_is_longer_while_it_is_open_and_ends_with_its_data(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "64M")
    image = t.hold("vise-io", "--image-opts", OPTIONS)
    image.command_line("write -P 1 0 1M")
    image.command_line("flush")
    t.check(t.path("a.qcow2").stat().st_size >= 8 * MIB, "nothing was allocated ahead")
    image.end()
    t.check(t.path("a.qcow2").stat().st_size < 2 * MIB, "what was left over is still there")
    t.sound("a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 1 0 1M", "read -P 0 1M 1M"])


@case
def killed_while_open_it_is_still_a_sound_image(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "64M")
    image = t.hold("vise-io", "--image-opts", OPTIONS)
    image.command_line("write -P 1 0 1M")
    image.command_line("flush")
    image.kill()
    t.sound("a.qcow2")
    for program in (t.vise_io, t.qemu_io) if has("qemu-io") else (t.vise_io,):
        program("-f", "qcow2", "a.qcow2", commands=["read -P 1 0 1M", "write -P 2 1M 1M", "read -P 2 1M 1M"])
    t.sound("a.qcow2")


@cases(seed=[1, 2])
def random_requests_give_the_same_as_without(t, seed):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "16M")
    t.vise_img("create", "-q", "-f", "qcow2", "b.qcow2", "16M")
    choice = random.Random(seed)
    commands = []
    for _ in range(150):
        offset = choice.randrange(16 * MIB - 300000)
        length = choice.choice([1, 512, 65536, 200000])
        commands.append(choice.choice([f"write -q -P {choice.randrange(256)} {offset} {length}",
                                       f"write -q -z {offset} {length}", f"write -q -z -u {offset} {length}",
                                       "flush", "reopen -r", "truncate 16M",
                                       f"write -q -c -P 7 {offset // 65536 * 65536} 64k"]))
        if commands[-1] == "reopen -r":
            commands.append("reopen -w")
    t.vise_io("--image-opts", OPTIONS, commands=commands)
    t.vise_io("-f", "qcow2", "b.qcow2", commands=commands)
    t.sound("a.qcow2")
    t.vise_img("compare", "a.qcow2", "b.qcow2")


@cases(seed=[1, 2])
def an_image_and_raw_data_stay_the_same_under_blkverify(t, seed):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "4M")
    t.write("raw", bytes(4 * MIB))
    choice = random.Random(seed)
    commands = []
    for _ in range(150):
        offset = choice.randrange(4 * MIB - 300000)
        length = choice.choice([1, 512, 65536, 200000])
        commands.append(choice.choice([f"write -q -P {choice.randrange(256)} {offset} {length}",
                                       f"write -q -z {offset} {length}", f"read -q {offset} {length}",
                                       f"discard -q {offset} {length}"]))
    options = "driver=blkverify,test.driver=qcow2,test.file.filename=a.qcow2,raw.filename=raw"
    t.vise_io("-d", "unmap", "--image-opts", options, commands=commands + ["read -q 0 4M"])
    t.reads_as("a.qcow2", "raw")
    t.vise_io("-f", "raw", "raw", commands=["write -q -P 1 1000 1", "write -q -P 2 1000 1"])
    t.fails_clearly(t.vise_io("--image-opts", options, commands=["read -q 0 4M"], code=1), "offset 1000")


main()
