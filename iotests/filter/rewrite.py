# groups: rw auto
"""A disk rewritten again and again through the compress filter does not bloat its image: what is
replaced makes room for what comes, within one session and across sessions."""
from vise_iotest import *

OPTIONS = "driver=compress,mode=all-writes,file.driver=qcow2,file.file.filename=a.qcow2"
LIMIT = 1.6  # times the size after the first pass


def half_compressible(size, source):
    out = bytearray()
    while len(out) < size:
        noise = source.randint(1024, 7168)
        out += source.randbytes(noise) + bytes(8192 - noise)
    return bytes(out[:size])


def rewrite(t, disk, piece, share, source):
    """Commands that write about `share` of the pieces of the disk anew, in random order."""
    commands = []
    pieces = [start for start in range(0, len(disk), piece) if source.random() < share]
    source.shuffle(pieces)
    for start in pieces:
        data = half_compressible(min(piece, len(disk) - start), source)
        disk[start:start + len(data)] = data
        t.write(f"piece{start}", data)
        commands.append(f"write -q -s piece{start} {start} {len(data)}")
    return commands + ["flush"]


@cases(sessions=["one", "one a pass"], codec=CODECS, cluster_size=["4k", "64k"])
def the_file_stays_within_bounds(t, sessions, codec, cluster_size):
    source = random.Random(3)
    disk = bytearray(16 * MIB)
    t.vise_img("create", "-f", "qcow2", "-o", f"compression_type={codec},cluster_size={cluster_size}",
               "a.qcow2", len(disk))
    sizes = []
    held = t.hold("vise-io", "--image-opts", OPTIONS) if sessions == "one" else None
    for number in range(8):
        commands = rewrite(t, disk, 128 * KIB, 1 if number % 2 == 0 else 0.5, source)
        if held:
            for command in commands:
                held.command_line(command)
        else:
            t.vise_io("--image-opts", OPTIONS, commands=commands)
        sizes.append(t.path("a.qcow2").stat().st_size)
    if held:
        t.equal(held.end(), 0, "exit status")
    t.check(max(sizes) <= LIMIT * sizes[0], f"sizes after the passes: {sizes}")
    t.write("expected", bytes(disk))
    t.sound("a.qcow2")
    t.reads_as("a.qcow2", "expected")


@cases(codec=CODECS, cluster_size=["4k", "64k", "2M"])
def holes_in_images_that_qemu_made(t, codec, cluster_size):
    """QEMU packs byte after byte: the end of one cluster and the head of the next share a sector."""
    source = random.Random(4)
    unit = {"4k": 4 * KIB, "64k": 64 * KIB, "2M": 2 * MIB}[cluster_size]
    size = max(4 * MIB, 8 * unit)
    disk = bytearray(half_compressible(size, source))
    t.write("raw", bytes(disk))
    t.qemu_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={codec},cluster_size={cluster_size}",
               "raw", "a.qcow2")
    first = t.path("a.qcow2").stat().st_size
    for _ in range(4):  # frees half of it …
        commands = [f"discard {start} {unit}" for start in range(0, size, unit) if source.random() < 0.5]
        for command in commands:
            start = int(command.split()[1])
            disk[start:start + unit] = bytes(unit)
        t.vise_io("-d", "unmap", "-f", "qcow2", "a.qcow2", commands=commands)
        # … and fills it again, next door to what is left.
        t.vise_io("--image-opts", OPTIONS, commands=rewrite(t, disk, unit, 0.5, source))
        t.write("expected", bytes(disk))
        t.sound("a.qcow2")
        t.reads_as("a.qcow2", "expected")
    last = t.path("a.qcow2").stat().st_size
    t.check(last <= LIMIT * first + 4 * unit, f"grew from {first} to {last}")


main()
