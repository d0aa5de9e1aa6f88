# groups: rw auto
"""`vise-img compress --compact`: what snapshots and bitmaps hold moves to the front, too."""
from vise_iotest import *

from in_place import Scattered, as_short_as_can_be, kill_at_moments, size_of
from qcow2_bitmaps import Directory

FORMS = ["cluster_size=4k", "cluster_size=64k,compression_type=zstd", "cluster_size=4k,refcount_bits=2",
         "cluster_size=64k,refcount_bits=4", "cluster_size=4k,refcount_bits=64", "cluster_size=64k,extended_l2=on",
         "cluster_size=16k,compat=0.10", "cluster_size=512,compression_type=zstd,refcount_bits=8",
         "cluster_size=2M"]


@cases(form=FORMS)
def what_snapshots_hold_moves_to_the_front(t, form):
    image = Scattered(t, form)
    before, length = image.held(), size_of(t, "a.qcow2")
    result = t.vise_img("compress", "--compact", "--output=json", "a.qcow2").json
    t.check(result["moved"] > 0, result)
    t.sound("a.qcow2")
    t.equal(image.held(), before, "what the disk and its snapshots hold, says qemu-img")
    as_short_as_can_be(t, "a.qcow2", more=0)
    t.check(size_of(t, "a.qcow2") < length * 0.6, f"{length} bytes became {size_of(t, 'a.qcow2')}")
    for number, name in enumerate(image.names):
        t.qemu_img("snapshot", "-a", name, "a.qcow2")
        t.sound("a.qcow2")
        t.qemu_img("convert", "-O", "raw", "a.qcow2", "held")
        t.equal(t.digest("held"), before[number + 1], f"the disk as it was at {name}")
        image.qemu_io(f"read -b -P {number + 7} 0 400k")
    t.qemu_img("snapshot", "-d", image.names[0], "a.qcow2")
    image.qemu_io("write -q -P 8 1M 5M")
    t.sound("a.qcow2")


@cases(form=["cluster_size=4k", "cluster_size=64k,compression_type=zstd"])
def killed_at_100_moments_of_moving_snapshots_are_intact(t, form):
    image = Scattered(t, form)
    t.vise_img("compress", "-q", "a.qcow2")  # so that moving is what is left to do
    before, length = image.held(), size_of(t, "a.qcow2")
    kill_at_moments(t, "a.qcow2", 100, lambda: t.equal(image.held(), before, "disk and snapshots"))
    t.check(size_of(t, "a.qcow2") < length * 0.5, f"{length} bytes became {size_of(t, 'a.qcow2')}")
    as_short_as_can_be(t, "a.qcow2")


@case
def little_free_space_is_enough(t):
    """What moves is random and fills the file system, but for the 64 MiB that we ask for."""
    image = Scattered(t, "cluster_size=64k", gone=40 * MIB, held=100 * MIB)
    length = size_of(t, "a.qcow2")
    before = image.held()
    folder = t.tmpfs("small", f"{length // MIB + 1 + 64}M")
    shutil.copy(t.path("a.qcow2"), folder / "a.qcow2")
    t.path("a.qcow2").unlink()
    os.symlink(folder / "a.qcow2", t.path("a.qcow2"))
    fill_up(folder, 64 * MIB)
    t.vise_img("compress", "--compact", "a.qcow2")
    t.sound("a.qcow2")
    t.equal(image.held(), before, "what the disk and its snapshots hold")
    as_short_as_can_be(t, "a.qcow2")
    t.check(os.path.getsize(folder / "a.qcow2") < length - 38 * MIB, "the file got too little shorter")


def fill_up(folder, but):
    """Leaves so many bytes free."""
    free = os.statvfs(folder)
    with open(folder / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - but)


@cases(cluster_size=[512, 4 * KIB, 64 * KIB])
def bitmaps_move_to_the_front(t, cluster_size):
    """Their data, tables and directory lie behind what is given up later."""
    size = 160 * MIB if cluster_size == 512 else 1 * GIB
    t.vise_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", "a.qcow2", str(size))
    t.write("noise", random.Random(5).randbytes(8 * MIB))
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -s noise 0 8M"])
    for name in ["recording", "still", "lost"]:
        t.vise_img("bitmap", "--add", "-g", "512" if name == "recording" else "4k", "a.qcow2", name)
    source = random.Random(6)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=[
        f"write -q -P 7 {source.randrange(size // 512) * 512} 512" for _ in range(100)])
    for name in ["still", "lost"]:
        t.vise_img("bitmap", "--disable", "a.qcow2", name)
    t.vise_io("-d", "unmap", "-f", "qcow2", "a.qcow2", commands=["discard -q 1M 7M", "write -q -P 3 4M 3k"])
    bitmaps = Directory(t, "a.qcow2")
    at, table, _, flags, _ = bitmaps.bitmaps["lost"]
    t.check(table > 8 * MIB, f"its table lies at {table}")
    t.patch("a.qcow2", at + 12, (flags | 1).to_bytes(4, "big"))  # as after a crash
    before = Directory(t, "a.qcow2").summary()
    t.vise_img("convert", "-O", "raw", "a.qcow2", "now.raw")
    length = size_of(t, "a.qcow2")
    t.vise_img("compress", "-q", "--compact", "a.qcow2")
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "now.raw")
    t.equal(Directory(t, "a.qcow2").summary(), before, "bitmaps")
    as_short_as_can_be(t, "a.qcow2")
    t.check(size_of(t, "a.qcow2") < length - 5 * MIB, f"{length} bytes became {size_of(t, 'a.qcow2')}")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -q -P 3 4M 3k"])
    t.sound("a.qcow2")


main()
