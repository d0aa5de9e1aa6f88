# groups: quick auto
"""Keys, types and values that scripts read: info, check, map, measure, compare and snapshot -l over
images of many kinds, in JSON and as tables, against qemu-img's."""
from vise_iotest import *

OLD = {"children", "compressed", "stored-length"}  # that qemu-img 7.2 does not know


def lines(t, *commands):
    for command in commands:
        program, *words = command.split()
        getattr(t, program)(*words)


def plain(t):
    lines(t, "qemu_img create -f qcow2 image 4M")


def written(t):
    plain(t)
    t.qemu_io("-f", "qcow2", "image", commands=["write -P 1 0 192k", "write -z 256k 64k", "write 1M 64k"])


def old_version(t):
    lines(t, "qemu_img create -f qcow2 -o compat=0.10,cluster_size=4k image 1500k")
    t.qemu_io("-f", "qcow2", "image", commands=["write 0 32k"])


def narrow(t):
    lines(t, "qemu_img create -f qcow2 -o refcount_bits=1,lazy_refcounts=on image 4M")


def extended(t):
    lines(t, "qemu_img create -f qcow2 -o extended_l2=on image 4M")
    t.qemu_io("-f", "qcow2", "image", commands=["write 0 4k", "write 130k 2k", "write -z 200k 8k"])


def compressed(t):
    t.write("raw", mixed_data(2 * MIB, 30 * KIB, 3))
    lines(t, "qemu_img convert -c -O qcow2 -o compression_type=zstd raw image")


def snapshots(t):
    written(t)
    lines(t, "qemu_img snapshot -c first image", "qemu_img snapshot -c a,long=name{with}json\"things image",
          "qemu_img snapshot -d first image", "qemu_img snapshot -c last image")


def bitmaps(t):
    written(t)
    lines(t, "qemu_img bitmap --add image one", "qemu_img bitmap --add -g 1M --disable image two")


def chain(t):
    lines(t, "qemu_img create -f qcow2 base 3M", "qemu_img create -f qcow2 -b base -F qcow2 middle 4M",
          "qemu_img create -f qcow2 -b middle -F qcow2 image 2M")
    for name, command in (("base", "write 0 3M"), ("middle", "write 1M 64k"), ("image", "write -z 0 64k")):
        t.qemu_io("-f", "qcow2", name, commands=[command])


def data_file(t):
    lines(t, "qemu_img create -f qcow2 -o data_file=data,data_file_raw=on image 2M")
    t.qemu_io("-f", "qcow2", "image", commands=["write 64k 64k"])


def dirty(t):
    lines(t, "qemu_img create -f qcow2 -o lazy_refcounts=on image 1M")
    t.patch("image", 79, b"\1")  # the incompatible feature bit "dirty"


def leaking(t):
    written(t)
    t.patch("image", 0x20000 + 2 * 20, b"\0\1")
    with open(t.path("image"), "r+b") as file:
        file.truncate(64 * KIB * 24)


def corrupt(t):
    written(t)
    t.patch("image", 0x20000 + 2 * 5, b"\0\0")


def encrypted(t):
    lines(t, "qemu_img create -f qcow2 -q --object secret,id=s,data=hunter2 "
             "-o encrypt.format=aes,encrypt.key-secret=s image 1M")


def raw(t):
    t.write("image", bytes(MIB) + b"x" * 700)


MAKERS = {maker.__name__.replace("_", " "): maker for maker in
          (plain, written, old_version, narrow, extended, compressed, snapshots, bitmaps, chain, data_file,
           dirty, leaking, corrupt, encrypted, raw)}


def comparable(value):
    """Without what is newer, and what the file system decides."""
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if isinstance(value, dict):
        return {key: 0 if key == "actual-size" else comparable(item) for key, item in value.items()
                if key not in OLD}
    return value


def shape(value):
    """The types, for what is only there as a type."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


COMMANDS = ["info --output=json", "info --backing-chain --output=json", "check --output=json",
            "map --output=json", "measure --output=json", "measure -O qcow2 --output=json",
            "measure -O qcow2 -o cluster_size=4k,compat=0.10 --output=json"]


@cases(image=list(MAKERS), command=COMMANDS)
def json_says_the_same(t, image, command):
    installed("qemu-img")
    if image == "encrypted" and command.startswith("check"):
        raise Skip("the check needs no key here, while qemu-img asks for it")
    MAKERS[image](t)
    form = ["-f", "raw"] if image == "raw" else []
    ours = t.vise_img(*command.split(), *form, "image", code=None)
    theirs = t.qemu_img(*command.split(), *form, "image", code=None)
    t.equal(ours.code, theirs.code, f"exit status\n{ours}\n{theirs}")
    if not theirs.stdout:
        t.equal(ours.stdout, "", "output")
        return
    t.equal(shape(comparable(ours.json)), shape(comparable(theirs.json)), "keys and types")
    if command.startswith("map"):
        t.equal(t.map_of("vise_img", "image", *form), t.map_of("qemu_img", "image", *form), "map")
    else:
        t.equal(comparable(ours.json), comparable(theirs.json), "values")


def as_version_10(text):
    """What qemu-img 7.2 prints, in the table form of version 10."""
    def row(match):
        name, clock, count = match["name"], match["clock"], match["count"].strip()
        return (f"{match['id'].strip():<7} {name} {match['size']} {match['date']} "
                f"{'00' + clock:>15} {count or '--':>10}\n")
    text = text.replace("ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT",
                        "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT")
    return re.sub(r"(?P<id>\d{1,9} +) ?(?P<name>\S.{15,}?) (?P<size>[ \d.]+\s?[KMGT]?i?B) "
                  r"(?P<date>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\s+(?P<clock>\d\d:\d\d:\d\d\.\d{3})(?P<count>.{11})\n",
                  row, text)


@cases(image=list(MAKERS), command=["info", "check", "measure -O qcow2", "snapshot -l", "compare"])
def tables_are_the_same(t, image, command):
    installed("qemu-img")
    if image == "encrypted" and command in ("check", "snapshot -l"):
        raise Skip("this needs no key here, while qemu-img asks for it")
    MAKERS[image](t)
    # snapshot has no -f in qemu-img 7.2
    form = ["-f", "raw"] if image == "raw" and command != "snapshot -l" else []
    after = []
    if command == "compare":
        t.write("other", bytes(4 * MIB))
        after = ["other"]
        form = form + ["-F", "raw"]
    ours = t.vise_img(*command.split(), *form, "image", *after, code=None)
    theirs = t.qemu_img(*command.split(), *form, "image", *after, code=None)
    t.equal(ours.code, theirs.code, f"exit status\n{ours}\n{theirs}")
    filtered = [re.sub(r"disk size: .*", "disk size: X", text.split("Child node")[0])
                for text in (ours.stdout, as_version_10(theirs.stdout))]
    t.equal(filtered[0], filtered[1], command)


main()
