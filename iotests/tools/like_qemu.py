# groups: quick auto
"""The same command line gives the same output as qemu-img and qemu-io, line by line."""
from vise_iotest import *

IMAGES = {
    "plain.qcow2": ["create -f qcow2 {} 4M"],
    "big.qcow2": ["create -f qcow2 -o cluster_size=2M {} 10T"],
    "small.qcow2": ["create -f qcow2 -o cluster_size=512,refcount_bits=1 {} 1M"],
    "old.qcow2": ["create -f qcow2 -o compat=0.10 {} 1500k"],
    "zstd.qcow2": ["create -f qcow2 -o compression_type=zstd,lazy_refcounts=on {} 4M"],
    "meta.qcow2": ["create -f qcow2 -o preallocation=metadata {} 4M"],
    "raw.raw": ["create -f raw {} 4M"],
    "top.qcow2": ["create -f qcow2 base.qcow2 1M",
                  "create -f qcow2 -b base.qcow2 -F qcow2 {} 2M"],
}
# Strings that differ between builds or versions and carry no meaning.
FILTERS = [(r"qemu-(img|io)", r"vise-\1"), (r"disk size: .*", "disk size: X"),
           (r'"actual-size": \d+', '"actual-size": 0'),
           (r"[0-9.:]+ sec \(.*\)|\d+:\d\d:\d\d\.\d\d \(.*\)", "TIME")]


def filtered(text):
    for pattern, replacement in FILTERS:
        text = re.sub(pattern, replacement, text)
    return text


def without_children(entry):
    """qemu-img 7.2 has no child nodes and no `compressed` in maps."""
    if isinstance(entry, list):
        return [without_children(item) for item in entry]
    if isinstance(entry, dict):
        return {key: without_children(value) for key, value in entry.items()
                if key not in ("children", "compressed", "actual-size")}
    return entry


def both(t, *arguments, code=0):
    ours, theirs = t.vise_img(*arguments, code=code), t.qemu_img(*arguments, code=code)
    return ours, theirs


@cases(image=list(IMAGES))
def create_prints_the_same_line_and_makes_the_same_file(t, image):
    installed("qemu-img")
    files = []
    for program in (t.vise_img, t.qemu_img):
        lines = [program(*line.format(image).split()).stdout for line in IMAGES[image]]
        files.append((filtered("".join(lines)), t.digest(image)))
        for name in (image, "base.qcow2"):
            t.path(name).unlink(missing_ok=True)
    t.equal(files[0][0], files[1][0], "output")
    t.equal(files[0][1], files[1][1], "file content")


@cases(image=list(IMAGES), command=["info", "check", "measure -O qcow2", "measure -O raw"])
def json_output_means_the_same(t, image, command):
    installed("qemu-img")
    for line in IMAGES[image]:
        t.qemu_img(*line.format(image).split())
    form = ["-f", "raw"] if image.endswith("raw") else []
    code = 63 if command == "check" and form else 0
    ours, theirs = both(t, *command.split(), "--output=json", *form, image, code=code)
    if code == 0:
        t.equal(without_children(ours.json), without_children(theirs.json), command)


@cases(image=list(IMAGES), command=["check", "map", "measure -O qcow2", "map --output=json"])
def human_output_is_the_same(t, image, command):
    installed("qemu-img")
    for line in IMAGES[image]:
        t.qemu_img(*line.format(image).split())
    if image.endswith("qcow2") and image != "big.qcow2":
        t.qemu_io("-f", "qcow2", image, commands=["write -P 1 0 64k", "write -z 128k 64k",
                                                  "write -P 2 300k 1k"])
    form = ["-f", "raw"] if image.endswith("raw") else []
    code = 63 if command == "check" and form else 0
    ours, theirs = both(t, *command.split(), *form, image, code=code)
    plain = re.sub(r'"compressed": (true|false), |, "compressed": (true|false)', "", ours.stdout)
    t.equal(filtered(plain), filtered(theirs.stdout), command)


@cases(image=["plain.qcow2", "old.qcow2", "zstd.qcow2", "raw.raw", "top.qcow2"])
def human_info_is_the_same_but_for_the_child_nodes(t, image):
    installed("qemu-img")
    for line in IMAGES[image]:
        t.qemu_img(*line.format(image).split())
    ours, theirs = both(t, "info", image)
    t.equal(filtered(ours.stdout.split("Child node")[0]), filtered(theirs.stdout), "info")


@cases(arguments=["--size 1G -O qcow2", "--size 1G -O qcow2 -o cluster_size=512", "--size 0 -O qcow2",
                  "--size 1T -O qcow2 -o cluster_size=2M,refcount_bits=64", "--size 1.5k -O raw",
                  "--size 10G -O qcow2 -o preallocation=full"])
def measure_of_a_size(t, arguments):
    ours, theirs = both(t, "measure", "--output=json", *arguments.split())
    t.equal(ours.json, theirs.json, "measure")
    ours, theirs = both(t, "measure", *arguments.split())
    t.equal(ours.stdout, theirs.stdout, "measure")


COMPARE = {
    "equal": (b"a" * 65536, b"a" * 65536, []),
    "different": (b"a" * 65536, b"a" * 40000 + b"b" * 25536, []),
    "longer, zeroes": (b"a" * 65536, b"a" * 65536 + bytes(65536), []),
    "longer, data": (b"a" * 65536, b"a" * 65536 + bytes(512) + b"x" * 65024, []),
    "longer, strict": (b"a" * 65536, b"a" * 65536 + bytes(65536), ["-s"]),
    "quiet": (b"a" * 65536, b"b" * 65536, ["-q"]),
    "progress": (b"a" * 65536, b"a" * 65536, ["-p"]),
    "progress, longer": (b"a" * 65536, b"a" * 65536 + bytes(65536), ["-p"]),
    "progress, different": (b"a" * 65536, b"b" * 65536, ["-p"]),
    "progress, strict": (b"a" * 65536, b"a" * 65536 + bytes(65536), ["-p", "-s"]),
}


@cases(kind=list(COMPARE))
def compare_says_the_same(t, kind):
    left, right, flags = COMPARE[kind]
    t.write("left", left)
    t.write("right", right)
    ours, theirs = both(t, "compare", "-f", "raw", "-F", "raw", *flags, "left", "right", code=None)
    t.equal(ours.code, theirs.code, "exit status")
    t.equal(ours.stdout, theirs.stdout, "output")


@case
def convert_progress_has_the_plain_form(t):
    t.write("raw", mixed_data(MIB, 64 * KIB, 1))
    done = t.vise_img("convert", "-p", "-O", "qcow2", "raw", "a.qcow2").stdout
    t.check(re.fullmatch(r"(    \(\d+\.\d\d/100%\)\r)+\n", done), repr(done))
    t.check(done.startswith("    (0.00/100%)\r") and "(100.00/100%)" in done, repr(done))


IO = ["read -P 0 0 64k", "write -P 5 0 64k", "read -v 0 32", "read -P 6 0 64k", "write 128k 512",
      "write -z 64k 64k", "write -c 192k 64k", "read -q 0 512", "length", "alloc 0 1M", "alloc 64k",
      "discard 0 64k", "map", "truncate 2M", "length", "readv 0 512 1024", "writev -P 1 0 512 512",
      "aio_write 0 4k", "aio_read 0 4k", "aio_flush", "flush", "read 5M 512", "nonsense", "read x 512",
      "read 0", "write -P 300 0 512", "read -P 1 -s 512 -l 512 0 4k", "write -s", "write -z -P 1 0 512"]


@case
def a_dump_shows_the_characters_that_qemu_io_shows(t):
    t.write("all", bytes(range(256)) * 2)
    shown = [run("-f", "raw", "all", commands=["read -v 0 256"]).stdout for run in (t.vise_io, t.qemu_io)]
    t.equal(*[filtered(text) for text in shown], "dumps")


@cases(options=[[], ["-d", "ignore"], ["-d", "unmap"]], opened_by=["argument", "open"])
def a_discard_does_what_it_does_under_qemu_io(t, options, opened_by):
    t.write("base", b"x" * MIB)
    found = []
    for name, run in (("ours", t.vise_io), ("theirs", t.qemu_io)):
        t.vise_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", name)
        if opened_by == "argument":
            run("-f", "qcow2", *options, name, commands=["discard 128k 64k"])
        else:
            run(commands=[" ".join(["open", *options, "-o driver=qcow2", name]), "discard 128k 64k"])
        found.append(t.map_of("vise_img", name))
    t.equal(*found, "maps")


@cases(command=IO)
def vise_io_prints_what_qemu_io_prints(t, command):
    outputs = []
    for program, run in (("qemu", t.qemu_io), ("vise", t.vise_io)):
        t.vise_img("create", "-q", "-f", "qcow2", f"{program}.qcow2", "1M")
        done = run("-f", "qcow2", f"{program}.qcow2", commands=["write -q -P 9 256k 64k", command],
                   code=None)
        text = filtered(done.stdout).replace("qemu.qcow2", "IMAGE").replace("vise.qcow2", "IMAGE")
        outputs.append((done.code, text))
    theirs, ours = outputs
    t.equal(ours[0], theirs[0], "exit status")
    if command.split()[0] not in ("nonsense",) and ours[0] == 0:
        t.equal(ours[1], theirs[1], "output")


@cases(command=["alloc x", "sleep -1", "sleep 1k", "sigraise x", "write 0 3G", "read 0 3G",
                "write -z 0 3G", "read 0 x", "read 2M 512", "write -P 300 0 512", "read -P 1 0 512",
                "write -z -P 1 0 64k", "aio_write -z -P 1 0 64k", "aio_write -z 0 64k 64k",
                "discard 0 3G", "help nonsense", "read -P 0 -s 600 0 512", "break a b", "resume a"])
def vise_io_says_the_same_about_bad_input(t, command):
    outputs = []
    for run in (t.qemu_io, t.vise_io):
        t.vise_img("create", "-q", "-f", "qcow2", "image", "1M")
        done = run("-f", "qcow2", "image", commands=[command], code=None)
        outputs.append((done.code, filtered(done.stdout)))
    t.equal(outputs[1], outputs[0], "exit status and output")


@cases(command=["write 4M 512", "write 4095k 2k", "write -z 4M 64k", "writev 4095k 1k 1k", "discard 4M 64k",
                "read 4M 512"])
def a_raw_disk_has_an_end_like_any_other(t, command):
    results = []
    for run in (t.qemu_io, t.vise_io):
        t.write("raw", bytes(4 * MIB))
        done = run("-f", "raw", "raw", commands=[command], code=None)
        results.append((done.code, filtered(done.stdout), os.path.getsize(t.path("raw"))))
    t.equal(results[1], results[0], "exit status, output and size")


@cases(filter=["driver=copy-on-read", "driver=throttle,throttle-group=g"])
def a_filter_hides_nothing_of_its_image(t, filter):
    t.write("base", b"x" * MIB)
    t.vise_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "top", "1M")
    t.vise_io("-f", "qcow2", "top", commands=["write -q 64k 64k"])
    options = f"{filter},file.driver=qcow2,file.file.filename=top"
    shown = [run("--object", "throttle-group,id=g,limits.iops-total=1000", "--image-opts", options,
                 commands=["map", "alloc 0 1M"]).stdout for run in (t.qemu_io, t.vise_io)]
    t.equal(shown[1], shown[0], "what map and alloc print")


@case
def creation_options_that_are_numbers_are_printed_as_such(t):
    ours, theirs = both(t, "create", "-f", "qcow2", "-o", "refcount_bits=0x10", "a.qcow2", "1M")
    t.equal(ours.stdout, theirs.stdout, "output")


@case
def bitmaps_can_come_with_a_snapshot(t):
    t.qemu_img("create", "-f", "qcow2", "a.qcow2", "1M")
    t.qemu_img("snapshot", "-c", "then", "a.qcow2")
    t.qemu_img("bitmap", "--add", "a.qcow2", "b")
    ours, theirs = both(t, "convert", "--bitmaps", "-l", "then", "-O", "qcow2", "a.qcow2", "new.qcow2")
    t.equal(ours.output, theirs.output, "output")
    t.equal(t.vise_img("info", "--output=json", "new.qcow2").json["format-specific"]["data"]["bitmaps"][0]["name"],
            "b", "bitmap")


@case
def vise_io_reads_commands_from_stdin(t):
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "1M")
    script = "length\n\nread -q 0 512\nquit\nlength\n"
    ours = t.vise_io("-f", "qcow2", "a.qcow2", stdin=script)
    theirs = t.qemu_io("-f", "qcow2", "a.qcow2", stdin=script)
    t.equal(filtered(ours.stdout), filtered(theirs.stdout), "output")


main()
