# groups: rw auto
"""Right and wrong command lines, one after the other: vise-img ends with the exit status of qemu-img,
says why if it is a failure, and prints the same if it is none.

Each line runs in a fresh copy of a folder of images. What qemu-img 7.2 does otherwise than version 10,
whose interface is ours, is not among them; bench and the options that are ours alone have their own tests.
"""
import shlex

from vise_iotest import *

LINES = {
    "amend": """
(nothing)
a.qcow2
-o compat=1.1
-o compat=1.1 a.qcow2 b
-o help
-o help -f raw
-f raw -o size=2M raw
-o size=2M a.qcow2
-o size=2M base.qcow2
-o nonsense=1 a.qcow2
-o cluster_size=4k a.qcow2
-o backing_file=x base.qcow2
-o refcount_bits=3 base.qcow2
-o compat=0.9 base.qcow2
-o lazy_refcounts=maybe base.qcow2
-o encryption=on base.qcow2
-t strange -o compat=1.1 base.qcow2
--force -o compat=1.1 base.qcow2
-q -p -o compat=1.1 base.qcow2
-f qcow2 -o compat=1.1 raw
--image-opts -f qcow2 -o compat=1.1 driver=qcow2,file.filename=base.qcow2
--image-opts -o compat=1.1 base.qcow2
-o compat=1.1 gone
-x
-o
""",
    "bitmap": """
(nothing)
a.qcow2
a.qcow2 b0
--add a.qcow2
--add a.qcow2 b0
--add a.qcow2 b1
--add -g 1000 a.qcow2 b1
--add -g 64k a.qcow2 b1
--add -g 256 a.qcow2 b1
--add -g 4G a.qcow2 b1
-g 64k --clear a.qcow2 b0
--remove a.qcow2 gone
--remove a.qcow2 b0 x
--clear --disable a.qcow2 b0
--enable --disable a.qcow2 b0
--merge a.qcow2 b0
--merge gone a.qcow2 b0
--add --merge b0 -b a.qcow2 -F qcow2 base.qcow2 bx
-b a.qcow2 --add base.qcow2 bx
-F qcow2 --add base.qcow2 bx
--add raw bx
--add gone bx
--add --add a.qcow2 b1
--nonsense a.qcow2 b0
""",
    "check": """
(nothing)
gone
a.qcow2 base.qcow2
raw
-f raw raw
text
-r all raw
-r some a.qcow2
-r all -U a.qcow2
-U a.qcow2
--output=xml a.qcow2
--output json a.qcow2
-q a.qcow2
-T none a.qcow2
-T strange a.qcow2
-f qcow2 raw
--image-opts driver=qcow2,file.filename=a.qcow2
--image-opts a.qcow2
--image-opts -f qcow2 driver=qcow2,file.filename=a.qcow2
-q --output=json a.qcow2
--object nonsense,id=s a.qcow2
""",
    "commit": """
(nothing)
base.qcow2
raw
top.qcow2
-d top.qcow2
-b base.qcow2 top.qcow2
-b ./base.qcow2 top.qcow2
-b gone top.qcow2
-b top.qcow2 top.qcow2
-q top.qcow2
-p top.qcow2 extra
-r 1M top.qcow2
-r x top.qcow2
-r -1 top.qcow2
-t strange top.qcow2
-t none top.qcow2
-f raw top.qcow2
-f nonsense top.qcow2
gone
""",
    "compare": """
(nothing)
raw
raw a.qcow2
raw base.qcow2
-f raw -F qcow2 raw a.qcow2
-f qcow2 raw a.qcow2
raw gone
gone raw
raw a.qcow2 base.qcow2
-s raw a.qcow2
-T strange raw a.qcow2
-x raw a.qcow2
--image-opts -f raw driver=raw,file.filename=raw driver=raw,file.filename=raw
--image-opts driver=raw,file.filename=raw driver=qcow2,file.filename=a.qcow2
--image-opts raw raw
-q raw base.qcow2
-p raw a.qcow2
-q -p raw a.qcow2
--object secret raw raw
-U raw raw
-f nonsense raw raw
raw text
""",
    "convert": """
(nothing)
raw
raw out
-O qcow2 raw out
-O nonsense raw out
-f nonsense raw out
-f qcow2 raw out
gone out
raw gone/out
-c -O raw raw out
-c -O qcow2 raw out
-n raw out
-n -O raw raw text
-n -O qcow2 raw a.qcow2
-n -O qcow2 -o size=1M raw a.qcow2
-n -O raw raw a.qcow2
--target-is-zero raw out
--target-is-zero -n -O qcow2 raw base.qcow2
--target-image-opts raw driver=qcow2,file.filename=a.qcow2
-n --target-image-opts raw driver=qcow2,file.filename=a.qcow2
-n -O qcow2 --target-image-opts raw driver=qcow2,file.filename=a.qcow2
-m 0 raw out
-m 17 raw out
-m x raw out
-S 100 raw out
-S 32M raw out
-S 0 raw out
-S -1 raw out
-C raw out
-C -c -O qcow2 raw out
-C -S 4k raw out
-C --salvage raw out
-W raw out
-W -c -O qcow2 raw out
-B base.qcow2 -O qcow2 top.qcow2 out
-B base.qcow2 -F qcow2 -O qcow2 top.qcow2 out
-F qcow2 -O qcow2 top.qcow2 out
-B base.qcow2 -F qcow2 -O raw top.qcow2 out
-B base.qcow2 -F qcow2 -O qcow2 top.qcow2 raw out
-B gone -F qcow2 -O qcow2 top.qcow2 out
-o backing_file=base.qcow2 -O qcow2 top.qcow2 out
-o backing_file=base.qcow2,backing_fmt=qcow2 -O qcow2 top.qcow2 out
-o cluster_siz=1k -O qcow2 raw out
-o cluster_size=1000 -O qcow2 raw out
-o size=5M -O qcow2 raw out
-o help -O qcow2
-o help -O qcow2 raw out
-l s1 a.qcow2 out
-l gone a.qcow2 out
-l snapshot.id=1 a.qcow2 out
-l snapshot.name=s1 a.qcow2 out
-l snapshot.id=1,snapshot.name=s2 a.qcow2 out
-l snapshot.x=1 a.qcow2 out
-l s1 raw out
-l s1 a.qcow2 base.qcow2 out
--bitmaps -O qcow2 a.qcow2 out
--bitmaps -O raw a.qcow2 out
--bitmaps -O qcow2 raw out
--skip-broken-bitmaps -O qcow2 a.qcow2 out
--bitmaps -O qcow2 a.qcow2 base.qcow2 out
--bitmaps -l s1 -O qcow2 a.qcow2 out
raw a.qcow2 out
raw raw
-r 10M raw out
-r x raw out
-t strange raw out
-T strange raw out
-t none raw out
-U raw out
-q -p raw out
--image-opts raw out
--image-opts driver=raw,file.filename=raw out
--image-opts -f raw driver=raw,file.filename=raw out
--salvage raw out
-O json: raw out
raw 'json:{"driver":"raw"}'
a:b out
'' out
raw ''
-x raw out
""",
    "create": """
(nothing)
x
x 1M
x 1M 2M
x 1X
x -1
x 1.5
x 0
'' 1M
-f qcow2 x 1000
-f qcow2 x
-f qcow2 x 1M
-f nonsense x 1M
-f qcow2 -o size=1M x
-f qcow2 -o size=1M x 1M
-f qcow2 -o cluster_size=1000 x 1M
-f qcow2 -o cluster_size=4M x 1M
-f qcow2 -o '' x 1M
-f qcow2 -o ,cluster_size=4k x 1M
-f qcow2 -o cluster_size=4k, x 1M
-f qcow2 -o nocow x 1M
-f qcow2 -o help
-f qcow2 -o help x
-f raw -o ?
-f qcow2 -o compat=0.10,refcount_bits=1 x 1M
-f qcow2 -o compat=0.10,lazy_refcounts=on x 1M
-f qcow2 -o compat=0.10,compression_type=zstd x 1M
-f qcow2 -o extended_l2=on x 1M
-f qcow2 -o extended_l2=on,cluster_size=4k x 1M
-f qcow2 -o preallocation=some x 1M
-f qcow2 -o preallocation=falloc x 1M
-f qcow2 -o lazy_refcounts x 1M
-f qcow2 -o nolazy_refcounts x 1M
-f qcow2 -o lazy_refcounts=1 x 1M
-f qcow2 -o refcount_bits=1k x 1M
-f qcow2 -o refcount_bits=0x10 x 1M
-f qcow2 -o refcount_bits=128 x 1M
-f qcow2 -o data_file_raw=on x 1M
-f qcow2 -b base.qcow2 x
-f qcow2 -b base.qcow2 -F qcow2 x
-f qcow2 -b base.qcow2 -F raw x
-f qcow2 -b base.qcow2 -F nonsense x
-f qcow2 -b gone -F qcow2 x
-f qcow2 -u -b gone -F qcow2 x
-f qcow2 -u -b gone -F qcow2 x 1M
-f qcow2 -b '' -F qcow2 x 1M
-f qcow2 -F qcow2 x 1M
-f qcow2 -b x -F qcow2 x 1M
-f raw -b base.qcow2 -F qcow2 x
-f qcow2 -o backing_file=base.qcow2 x
-f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 x
-f qcow2 -o backing_file=gone -b base.qcow2 -F qcow2 x
-q -f qcow2 x 1M
-f qcow2 gone/x 1M
-f qcow2 json:{} 1M
-f qcow2 nbd:x 1M
-f qcow2 file:x 1M
-f qcow2 'a b,c' 1M
-f qcow2 x 8E
-f qcow2 -o size=8E x
-f qcow2 -o size=-1 x
-x
-f raw -o preallocation=metadata x 1M
-f raw -o cluster_size=4k x 1M
-f qcow2 -o cluster_size=4k -o cluster_size=8k x 1M
-f qcow2 -o cluster_size=4k,cluster_size=8k x 1M
""",
    "dd": """
(nothing)
if=raw
of=out
if=raw of=out
if=raw of=out bs=0
if=raw of=out bs=x
if=raw of=out bs=2G
if=raw of=out bs=4k count=3
if=raw of=out bs=4k count=x
if=raw of=out bs=4k skip=1000
if=raw of=out bs=4k skip=-1
if=raw of=out conv=sync
if=raw of=out raw
-O qcow2 if=raw of=out
-O nonsense if=raw of=out
-f qcow2 if=raw of=out
if=gone of=out
if=raw of=gone/out
-U if=raw of=out
--image-opts if=driver=raw,file.filename=raw of=out
if=raw of=out seek=1
if=raw of=out iflag=direct
-x if=raw of=out
if= of=out
if=raw if=a.qcow2 of=out
""",
    "info": """
(nothing)
gone
raw a.qcow2
raw
a.qcow2
--output=xml raw
--output raw
-f nonsense raw
-f qcow2 raw
--backing-chain top.qcow2
--backing-chain gone
--image-opts driver=qcow2,file.filename=a.qcow2
--image-opts a.qcow2
--image-opts driver=nonsense,file.filename=a.qcow2
-U a.qcow2
-x a.qcow2
''
a:b
.
'json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}}'
'json:{"driver":"qcow2"'
json:{}
--object secret,data=x raw
--object help
null-co://
""",
    "map": """
(nothing)
gone
a.qcow2
a.qcow2 raw
raw
--output=xml raw
-s 1k -l 1k raw
-s -1 raw
-l x raw
-s 2M raw
-l 0 raw
--output=json -s 2M raw
--output=json -l 0 raw
-f qcow2 raw
--start-offset=4k --max-length=8k raw
--image-opts driver=raw,file.filename=raw
-U raw
""",
    "measure": """
(nothing)
raw
--size 1M
--size 1M raw
--size x
--size -1
raw a.qcow2
-O qcow2 raw
-O nonsense raw
-O qcow2 -o cluster_size=1000 raw
-O qcow2 -o nonsense=1 raw
-O qcow2 -o size=1M raw
--size 1M -f raw
--size 1M -l s1
--size 1M --image-opts
-l s1 a.qcow2
-l gone a.qcow2
-O qcow2 a.qcow2
-O qcow2 -o compat=0.10 a.qcow2
--output=json a.qcow2
--output=xml a.qcow2
-U raw
gone
--size 1M -O qcow2 -o extended_l2=on
--size 1M -O qcow2 -o preallocation=x
""",
    "rebase": """
(nothing)
top.qcow2
-u top.qcow2
-u -b gone top.qcow2
-u -b gone -F qcow2 top.qcow2
-u -b gone -F nonsense top.qcow2
-u -b gone -F vmdk top.qcow2
-b base.qcow2 top.qcow2
-b base.qcow2 -F qcow2 top.qcow2
-b a.qcow2 -F qcow2 top.qcow2
-b gone -F qcow2 top.qcow2
-b '' top.qcow2
-b '' -F qcow2 top.qcow2
-b top.qcow2 -F qcow2 top.qcow2
-b base.qcow2 -F raw top.qcow2
-b base.qcow2 -F nonsense top.qcow2
-b base.qcow2 -F qcow2 raw
-u -b base.qcow2 -F qcow2 raw
-b base.qcow2 -F qcow2 gone
-b base.qcow2 -F qcow2 top.qcow2 extra
-t strange -b base.qcow2 -F qcow2 top.qcow2
-T strange -b base.qcow2 -F qcow2 top.qcow2
-p -b a.qcow2 -F qcow2 top.qcow2
-q -p -b base.qcow2 -F qcow2 top.qcow2
-U -b base.qcow2 -F qcow2 top.qcow2
-x top.qcow2
-f qcow2 -b a.qcow2 -F qcow2 top.qcow2
-F qcow2 top.qcow2
""",
    "resize": """
(nothing)
base.qcow2
base.qcow2 2M
base.qcow2 +1M
base.qcow2 -512k
--shrink base.qcow2 -512k
--shrink base.qcow2 -1M
--shrink base.qcow2 -5M
base.qcow2 1M
base.qcow2 512k
base.qcow2 1000
base.qcow2 1048577
base.qcow2 x
base.qcow2 ++1M
base.qcow2 +x
base.qcow2 +8E
base.qcow2 0
--shrink base.qcow2 0
2M base.qcow2
base.qcow2 2M 3M
-f raw raw 2M
raw 2M
-f raw raw 1048577
-f raw --shrink raw 1000
--preallocation=full base.qcow2 2M
--preallocation=some base.qcow2 2M
--preallocation=metadata --shrink base.qcow2 512k
--preallocation=metadata -f raw raw 2M
--preallocation=falloc -f raw raw 2M
gone 2M
-q base.qcow2 2M
--image-opts driver=qcow2,file.filename=base.qcow2 2M
-f qcow2 raw 2M
-x base.qcow2 2M
a.qcow2 2M
a.qcow2 --shrink 512k
""",
    "snapshot": """
(nothing)
a.qcow2
-l a.qcow2
-l raw
-l base.qcow2
-l gone
-c s2 a.qcow2
-c '' a.qcow2
-c s1 a.qcow2
-c s2 raw
-a s1 a.qcow2
-a 1 a.qcow2
-a gone a.qcow2
-d s1 a.qcow2
-d 1 a.qcow2
-d gone a.qcow2
-l -c s2 a.qcow2
-c s2 -c s3 a.qcow2
-a s1 -d s1 a.qcow2
-l -l a.qcow2
-U -l a.qcow2
-U -c s2 a.qcow2
-q -c s2 a.qcow2
-l a.qcow2 raw
-x a.qcow2
-c
--image-opts -l driver=qcow2,file.filename=a.qcow2
""",
}
# Lines that print what depends on the version or the program.
NOT_COMPARED = ("info ", "snapshot a.qcow2", "snapshot -l", "snapshot -U -l", "snapshot --image-opts",
                "rebase -p", "rebase -q -p")


def images(t, folder):
    """The images the lines are about; made with one program, so that both get the same bytes."""
    path = t.path(folder)
    path.mkdir()
    (path / "raw").write_bytes(bytes(MIB))
    (path / "text").write_text("hello")
    t.vise_img("create", "-f", "qcow2", path / "base.qcow2", "1M")
    t.vise_io("-f", "qcow2", path / "base.qcow2", commands=["write 0 128k"])
    t.qemu_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", path / "top.qcow2")
    t.vise_img("create", "-f", "qcow2", path / "a.qcow2", "1M")
    t.vise_img("snapshot", "-c", "s1", path / "a.qcow2")
    t.vise_img("bitmap", "--add", path / "a.qcow2", "b0")


def outcome(t, program, words):
    shutil.rmtree(t.path("now"), ignore_errors=True)
    shutil.copytree(t.path("images"), t.path("now"))
    path = installed(program) if program == "qemu-img" else t.tools / program
    here, t.dir = t.dir, t.path("now")
    try:
        return t.run(path, *words, code=None, timeout=60)
    finally:
        t.dir = here


def asks_for_help(line):
    """The descriptions of options are our own."""
    return "help" in line or "?" in line


def plain(text):
    """Without what newer versions add to maps."""
    return re.sub(r', "compressed": (true|false)', "", text)


@cases(subcommand=list(LINES))
def ends_and_prints_as_qemu_img_does(t, subcommand):
    installed("qemu-img")
    images(t, "images")
    wrong = []
    for line in LINES[subcommand].strip().splitlines():
        words = [subcommand] + ([] if line == "(nothing)" else shlex.split(line))
        theirs, ours = outcome(t, "qemu-img", words), outcome(t, "vise-img", words)
        told = f"{subcommand} {line}"
        if theirs.code != ours.code:
            wrong.append(f"{told}: exit status {ours.code}, not {theirs.code}\n{ours}\n{theirs}")
        elif ours.code != 0 and not ours.output.strip():
            if "-q" not in words:
                wrong.append(f"{told}: fails without a word")
        elif ours.code == 0 and not asks_for_help(line) and not told.startswith(NOT_COMPARED):
            if plain(ours.stdout) != theirs.stdout:
                wrong.append(f"{told}: prints {ours.stdout!r}, not {theirs.stdout!r}")
    t.check(not wrong, "\n".join(wrong))


@cases(line=["", "nonsense", "-x", "--nonsense", "-T", "--trace", "--help", "-h", "--version", "-V",
             "-T nonsense --version", "info --object help", "info --help", "create -h", "--help info"])
def the_program_by_itself(t, line):
    t.equal(t.vise_img(*line.split(), code=None).code, t.qemu_img(*line.split(), code=None).code,
            "exit status")


@case
def names_that_the_help_of_version_10_lists_are_known(t):
    """(Some of them crash or are refused there.)"""
    t.vise_img("create", "-q", "-f", "qcow2", "image", "1M")
    for words in (["--create", "one"], ["--create=two"], ["--apply", "one"], ["--delete=one"]):
        t.vise_img("snapshot", *words, "image")
    t.equal([entry["name"] for entry in t.vise_img("info", "--output=json", "image").json["snapshots"]],
            ["two"], "snapshots")
    t.equal(t.vise_img("measure", "-s", "1M").stdout, t.vise_img("measure", "--size", "1M").stdout, "measure")
    t.vise_img("bitmap", "--format", "qcow2", "--add", "image", "b")
    t.vise_img("bench", "--quiet", "--count", "5", "image")
    t.vise_img("convert", "--compress", "--progress", "--output-format", "qcow2", "image", "new")
    t.vise_img("convert", "--no-create", "--output-format", "qcow2", "image", "new")


@case
def there_are_enough_lines(t):
    t.check(sum(len(lines.strip().splitlines()) for lines in LINES.values()) >= 150, "too few")


main()
