# groups: quick rw auto
"""convert --salvage: what cannot be read becomes zeros, sector by sector, and is told."""
from vise_iotest import *

BAD = (100, 101, 3000)


def bad_sectors(t, name, sectors=BAD):
    """Options that open the raw file `name` with sectors that cannot be read."""
    t.write("bad.conf", "".join(f'[inject-error]\nevent = "none"\nerrno = "5"\nsector = "{sector}"\n'
                                'iotype = "read"\n' for sector in sectors).encode())
    return f"driver=blkdebug,config=bad.conf,image.driver=file,image.filename={name}"


def without(data, sectors=BAD):
    data = bytearray(data)
    for sector in sectors:
        data[sector * 512:(sector + 1) * 512] = bytes(512)
    return bytes(data)


WARNINGS = "".join(f"vise-img: warning: error while reading offset {sector * 512}: Input/output error\n"
                   for sector in BAD)


@cases(target=["-O raw", "-O qcow2", "-c -O qcow2", "-O qcow2 -o cluster_size=512", "-S 0 -O raw",
               "-m 1 -O raw"])
def lost_sectors_become_zeros(t, target):
    data = random.Random(3).randbytes(2 * MIB)
    t.write("raw", data)
    t.write("expected", without(data))
    source = ["--image-opts", bad_sectors(t, "raw")]
    refused = t.vise_img("convert", *target.split(), *source, "new", code=1)
    t.fails_clearly(refused, "error while reading")
    ours = t.vise_img("convert", "--salvage", *target.split(), *source, "new")
    t.equal((ours.stdout, ours.stderr), ("", WARNINGS), "output")
    t.reads_as("new", "expected", format="raw" if "raw" in target else "qcow2")
    quiet = t.vise_img("convert", "-q", "--salvage", *target.split(), *source, "new")
    t.equal(quiet.output, "", "output with -q")
    theirs = t.qemu_img("convert", "--salvage", *target.split(), *source, "new")
    t.equal(ours.stderr.replace("vise-img", "qemu-img"), theirs.stderr, "warnings")


@case
def a_lost_sector_of_a_compressed_cluster_loses_that_cluster_alone(t):
    data = random.Random(3).randbytes(256) * 4096
    t.write("raw", data)
    t.vise_img("convert", "-c", "-O", "qcow2", "raw", "source")
    entry = next(entry for entry in t.qemu_img("map", "--output=json", "source").json)
    t.check(entry["data"], entry)
    first = 5 * 64 * KIB // 512  # the first data cluster: stored behind header, tables and refcounts
    done = t.vise_img("convert", "--salvage", "-c", "-O", "qcow2", "--image-opts",
                      f"driver=qcow2,file.{bad_sectors(t, 'source', [first]).replace(',', ',file.')}", "new")
    lost = {int(offset) for offset in re.findall(r"offset (\d+): Input", done.stderr)}
    t.check(lost and lost == set(range(min(lost), max(lost) + 1, 512)), done)
    t.check(len(lost) % 128 == 0, f"{len(lost)} sectors of clusters of 128")
    t.write("expected", without(data, [offset // 512 for offset in lost]))
    t.reads_as("new", "expected")


@case
def a_lost_l2_table_loses_what_it_maps(t):
    data = random.Random(3).randbytes(3 * MIB)
    t.write("raw", data)
    t.vise_img("convert", "-O", "qcow2", "-o", "cluster_size=4k", "raw", "source")
    # One table maps 2 MiB. The second one:
    l1 = int.from_bytes(t.read("source")[40:48], "big")
    table = int.from_bytes(t.read("source")[l1 + 8:l1 + 16], "big") & 0x00fffffffffffe00
    sectors = range(table // 512, table // 512 + 8)
    done = t.vise_img("convert", "--salvage", "-O", "raw", "--image-opts",
                      "driver=qcow2,file." + bad_sectors(t, "source", sectors).replace(",", ",file."), "new")
    t.equal(len(done.stderr.splitlines()), MIB // 512, "lost sectors")
    t.equal(t.read("new"), data[:2 * MIB] + bytes(MIB), "what is left")


@case
def with_several_sources_offsets_are_those_of_the_target(t):
    t.write("raw", random.Random(3).randbytes(2 * MIB))
    source = bad_sectors(t, "raw", [7])
    done = t.vise_img("convert", "--salvage", "-O", "raw", "--image-opts", source, source, "new")
    t.equal(re.findall(r"offset (\d+):", done.stderr), ["3584", str(2 * MIB + 3584)], "offsets")


@case
def writing_is_not_salvaged(t):
    t.tmpfs("small", "1m")
    t.write("raw", random.Random(3).randbytes(4 * MIB))
    t.fails_clearly(t.vise_img("convert", "--salvage", "-O", "raw", "raw", "small/new", code=1),
                    "No space left")


@case
def offloading_and_salvage_exclude_each_other(t):
    t.write("raw", bytes(MIB))
    t.fails_clearly(t.vise_img("convert", "-C", "--salvage", "raw", "new", code=1), "--salvage")
    t.check(not t.path("new").exists(), "a target was made")


main()
