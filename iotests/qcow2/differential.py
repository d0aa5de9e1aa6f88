# groups: rw auto
"""The same random operations on twin images, by our programs and by QEMU's, which change places now and
then. After each batch the contents are compared and both images checked, by both programs.

    iotests/run iotests/qcow2/differential.py --seconds 600             random images, seeds printed
    iotests/run iotests/qcow2/differential.py --seed 4711               one image again
    iotests/run iotests/qcow2/differential.py --seed 4711 --minimise    and what of it is enough to fail
"""
import argparse
import sys

from twins import Twins, minimise
from vise_iotest import *

BATCHES = 30   # for each image
COMMANDS = 60  # of the io programs in a batch, at most


class Shape:
    """Creation options, sizes and backing files of a pair of images."""

    def __init__(self, seed):
        self.random = r = random.Random(seed)
        self.seed = seed
        self.cluster = r.choice([512, 1024, 2048, 4096, 4096, 16384, 32768, 65536, 65536, 65536, 262144, 2 * MIB])
        self.options = {"cluster_size": str(self.cluster)}
        self.v2 = r.random() < 0.15
        self.subclusters = False
        self.data_file = False
        self.refcount_bits = 16
        if self.v2:
            self.options["compat"] = "0.10"
        else:
            self.choose_v3_options()
        self.size = self.random_size()
        self.backing = r.choice([None, None, "base.raw", "base.qcow2", "mid.qcow2"])
        if "data_file_raw" in self.options:
            self.backing = None
        if r.random() < 0.2 and (self.backing is None or self.subclusters):
            self.options["preallocation"] = r.choice(["metadata", "falloc", "full"])
        self.roles = r.choice(["vq", "qv"])

    def choose_v3_options(self):
        r = self.random
        self.refcount_bits = r.choice([1, 2, 4, 8, 16, 16, 16, 16, 32, 64])
        self.options["refcount_bits"] = str(self.refcount_bits)
        if r.random() < 0.3:
            self.options["lazy_refcounts"] = "on"
        # Draws of its own, so that seeds from before data files give the same images, mostly.
        files = random.Random(self.seed + 2)
        if files.random() < 0.25:
            self.data_file = True
            self.options["data_file"] = "DISK.data"
            if files.random() < 0.4:
                self.options["data_file_raw"] = "on"
        if self.cluster >= 16384 and r.random() < 0.3:
            self.subclusters = True
            self.options["extended_l2"] = "on"
        if r.random() < 0.4:
            self.options["compression_type"] = "zstd"

    def random_size(self):
        r = self.random
        most = max(6 * self.cluster, min(400 * self.cluster, 6 * MIB))
        return r.randint(most // 4, most) // 512 * 512

    def sources(self):
        """Files whose bytes are written: noise does not compress, text does."""
        return {"noise": random.Random(self.seed).randbytes(300 * KIB),
                "text": mixed_data(300 * KIB, 4096, self.seed)}

    def bases(self):
        """Backing images, by name; content differs in parts only, sizes are smaller and larger."""
        r = random.Random(self.seed + 1)
        common = mixed_data(self.size, max(4096, self.cluster // 2), self.seed)
        result = {}
        for name in ["base.raw", "base.qcow2", "other.raw", "mid.qcow2"]:
            data = bytearray(common[:r.choice([self.size, self.size // 1024 * 512, self.size // 3 // 512 * 512])])
            if r.random() < 0.4:
                data += mixed_data(r.randint(1, 200) * 512, 4096, self.seed)
            for _ in range(4):
                at = r.randrange(len(data))
                length = min(r.randint(1, 2 * self.cluster), len(data) - at)
                data[at:at + length] = r.choice([bytes(length), r.randbytes(length)])
            result[name] = bytes(data)
        return result

    def base_words(self, name):
        words = ["-c"] if name == "base.qcow2" else []
        if name == "mid.qcow2":
            words += ["-o", "cluster_size=4k", "-B", "base.qcow2", "-F", "qcow2"]
        return words

    def creation(self):
        words = ["create", "-q", "-f", "qcow2", "-o", ",".join(f"{k}={v}" for k, v in self.options.items())]
        if self.backing:
            words += ["-b", self.backing, "-F", self.backing.rpartition(".")[2]]
        return [*words, "DISK", str(self.size)]


class Generator:
    """Draws operations. What it believes of the images follows what was really done."""

    def __init__(self, shape):
        self.shape, self.random = shape, shape.random
        self.cluster, self.size = shape.cluster, shape.size
        self.v2 = shape.v2
        self.backing = shape.backing
        self.touched = set()  # clusters that may be allocated: qemu-io cannot compress them anew
        if "preallocation" in shape.options:
            self.touch(0, self.size)
        self.frees = False  # QEMU puts compressed clusters where others were freed, even over new metadata
        self.snapshots = []
        self.comparable = {}  # name → size of the disk; the backing file is as it was when it was taken
        self.bitmaps = []
        self.made = 0

    def touch(self, offset, length):
        self.touched.update(range(offset // self.cluster, -(-(offset + length) // self.cluster)))

    # ---- commands of vise-io and qemu-io

    def any_range(self, unit=512, most=3):
        r = self.random
        if self.size < unit:
            return 0, 0
        longest = r.choice([8 * 512, self.cluster, most * self.cluster])
        start = r.randrange(self.size // unit) * unit
        length = r.randint(1, max(1, longest // unit)) * unit
        return start, min(length, self.size - start)

    def data(self):
        r = self.random
        return r.choice([f"-P {r.randrange(1, 256)}", f"-P {r.randrange(1, 256)}", "-P 0", "-s noise", "-s text"])

    def write(self):
        offset, length = self.any_range(self.random.choice([512, 512, 512, 1, self.cluster]))
        flags = self.random.choice(["", "", "", "-f "])
        return self.same(f"write -q {flags}{self.data()} {offset} {length}", offset, length)

    def compressed(self):
        if self.shape.data_file:
            return self.write()
        offset, length = self.any_range(self.cluster, most=5)
        if length % self.cluster and offset + length != self.size:
            return self.write()
        data = self.data()
        clusters = range(offset // self.cluster, -(-(offset + length) // self.cluster))
        refused = self.frees or any(cluster in self.touched for cluster in clusters)
        self.touch(offset, length)
        ours = f"write -q -c {data} {offset} {length}"
        return [(ours, f"write -q {data} {offset} {length}" if refused else ours)]

    def zeroes(self):
        offset, length = self.any_range(self.random.choice([512, 512, 1, self.cluster]), most=6)
        return self.same(f"write -q -z {self.random.choice(['', '-u '])}{offset} {length}", offset, length)

    def discard(self):
        offset, length = self.any_range(self.random.choice([512, self.cluster, self.cluster]), most=6)
        return self.same(f"discard -q {offset} {length}", offset, length)

    def vector(self):
        offset, length = self.any_range()
        parts = []
        while length > 0 and len(parts) < 5:
            parts.append(min(length, self.random.randint(1, 40) * 512))
            length -= parts[-1]
        words = " ".join(map(str, parts))
        return self.same(f"writev -q -P {self.random.randrange(256)} {offset} {words}", offset, sum(parts))

    def asynchronous(self):
        """Requests at the same time that share clusters, not bytes. QEMU 7.2 loses data where one of
        them writes zeroes, so it gets them one after the other."""
        offset, length = self.any_range(most=4)
        result = []
        end = offset + length
        while offset < end:
            part = min(end - offset, self.random.randint(1, max(2, length // 512 // 2)) * 512)
            kind = self.random.choice(["-P 17", f"-P {self.random.randrange(256)}", "-z", "-z -u"])
            self.touch(offset, part)
            result.append((f"aio_write -q {kind} {offset} {part}", f"write -q {kind} {offset} {part}"))
            offset += part
        self.random.shuffle(result)
        return [*result, ("aio_flush", "flush")]

    def read(self):
        offset, length = self.any_range(self.random.choice([1, 512]))
        # A pattern that hardly ever holds: what both say about it is compared.
        both = self.random.choice([f"read -P {self.random.randrange(256)} {offset} {length}",
                                   f"read -v {offset} {min(length, 256)}"])
        return [(both, both)]

    def same(self, command, offset, length):
        self.touch(offset, length)
        return [(command, command)] if length else []

    def other(self):
        both = self.random.choice(["flush", "length", "reopen -c writethrough", "reopen -c writeback",
                                   f"write -q -P 1 {self.size // 512 * 512} 512", f"read -q {self.size} 1"])
        return [(both, both)]

    def io(self):
        r = self.random
        roles = r.choice(["vq", "qv"])
        commands = []
        kinds = ([self.write] * 6 + [self.compressed] * 5 + [self.zeroes] * 3 + [self.discard] * 2 +
                 [self.vector, self.asynchronous, self.read, self.read, self.other])
        self.frees = False
        for _ in range(r.choice([0, 0, 3, 12])):
            commands += self.compressed()
        self.frees = True
        for _ in range(r.randint(1, COMMANDS)):
            commands += r.choice(kinds)()
        return {"kind": "io", "roles": roles, "commands": commands or [("length", "length")],
                "options": {"v": self.our_options(), "q": self.options_of_both()}}

    def options_of_both(self):
        return self.random.choice([["-f", "qcow2", "DISK"]] * 4 + [["-t", "none", "-f", "qcow2", "DISK"],
                                   ["-t", "writethrough", "-f", "qcow2", "DISK"], ["-m", "-f", "qcow2", "DISK"]])

    def our_options(self):
        """Filters above the image, and caches that hold next to nothing, change no contents."""
        r = self.random
        plain = "driver=qcow2,file.driver=file,file.filename=DISK"
        nested = "file.driver=qcow2,file.file.driver=file,file.file.filename=DISK"
        choices = [self.options_of_both()] * 5 + [
            ["--image-opts", plain + ",l2-cache-size=8k,refcount-cache-size=8k"],
            ["--image-opts", plain + ",detect-zeroes=" + r.choice(["on", "unmap"]) + ",discard=unmap"],
            ["--image-opts", "driver=compress,mode=" + r.choice(["new-writes", "all-writes"]) + "," + nested],
            ["--image-opts", "driver=compress,mode=all-writes,write-buffer-size=0," + nested],
            ["--image-opts", "driver=copy-on-read," + nested]]
        if self.shape.data_file:
            choices = choices[:7] + choices[-1:]  # nothing is compressed there
        return r.choice(choices[:5] if self.bitmaps else choices)  # filters may write more than they must

    # ---- vise-img and qemu-img

    def img(self, *words, may_refuse=False, then=None):
        return {"kind": "img", "roles": self.random.choice(["vq", "qv"]), "words": list(map(str, words)),
                "may_refuse": may_refuse, "then": then}

    def take_snapshot(self):
        if self.shape.data_file:
            return self.resize()
        self.made += 1
        name, size = f"s{self.made}", self.size
        # How often a compressed cluster's host cluster is used depends on the writer.
        return self.img("snapshot", "-c", name, "DISK", may_refuse=self.shape.refcount_bits < 16,
                        then=lambda: (self.snapshots.append(name), self.comparable.update({name: size})))

    def apply_snapshot(self):
        if not self.comparable:
            return self.take_snapshot()
        name = self.random.choice(list(self.comparable))

        def then():
            self.size = self.comparable[name]
            self.touch(0, self.size)
        return self.img("snapshot", "-a", name, "DISK", may_refuse=self.shape.refcount_bits < 16, then=then)

    def delete_snapshot(self):
        if not self.snapshots:
            return self.take_snapshot()
        name = self.random.choice(self.snapshots)
        return self.img("snapshot", "-d", name, "DISK",
                        then=lambda: (self.snapshots.remove(name), self.comparable.pop(name, None)))

    def resize(self):
        size = self.random.choice([self.shape.random_size(), self.size + self.random.randint(-20, 20) * 512,
                                   self.size // self.cluster * self.cluster])
        size = max(512, size if size != self.size else size + 512)
        words = ["--shrink"] if size < self.size or self.random.random() < 0.3 else []
        if size > self.size and self.random.random() < 0.3:
            words += ["--preallocation", self.random.choice(["metadata", "falloc", "full"])]
        if self.random.random() < 0.1:
            words = []
        old = self.size

        def then():
            self.size = size
            if size > old:
                self.touch(old, size - old)
                self.grown_from = old
        return self.img("resize", "-q", "-f", "qcow2", *words, "DISK", size, then=then)

    def commit(self):
        words = self.random.choice([[], ["-d"]])
        # What a snapshot has not allocated, which need not be the same in both, is now different.
        return self.img("commit", "-q", *words, "DISK", then=self.comparable.clear)

    def rebase(self):
        if self.bitmaps:
            return self.bitmap()  # what is taken over from the old backing file need not be the same
        name = self.random.choice(["base.raw", "base.qcow2", "other.raw", "mid.qcow2", ""])
        if "data_file_raw" in self.shape.options:
            name = ""
        # Without a backing file before, QEMU shows the new one's data in version 2 images.
        unsafe = self.random.random() < 0.2 or (self.v2 and self.backing is None)
        if unsafe:
            name = self.backing or ""
        words = ["-F", name.rpartition(".")[2]] if name else []
        words += ["-u"] if unsafe else []

        def then():
            self.backing = name or None
            self.touch(0, self.size)
            if not unsafe:
                self.comparable.clear()
        return self.img("rebase", "-b", name, *words, "DISK", then=then)

    def bitmap(self):
        r = self.random
        if not self.bitmaps or (r.random() < 0.3 and len(self.bitmaps) < 4):
            self.made += 1
            name = f"b{self.made}"
            words = ["-g", 512 << r.randrange(12)] if r.random() < 0.7 else []
            words += ["--disable"] if r.random() < 0.3 else []
            return self.img("bitmap", "--add", *words, "DISK", name, then=lambda: self.bitmaps.append(name))
        name = r.choice(self.bitmaps)
        how = r.choice([["--remove"], ["--clear"], ["--enable"], ["--disable"],
                        ["--merge", r.choice(self.bitmaps)]])
        then = (lambda: self.bitmaps.remove(name)) if how == ["--remove"] else None
        return self.img("bitmap", *how, "DISK", name, then=then)

    def amend(self):
        r = self.random
        if self.shape.data_file:
            return self.img("amend", "-f", "qcow2", "-o", f"lazy_refcounts={r.choice(['on', 'off'])}", "DISK")
        options = ["lazy_refcounts=on", "lazy_refcounts=off", "compat=1.1"]
        if self.cluster < 2 * MIB:  # for which qemu-img needs minutes
            options += [f"refcount_bits={bits}" for bits in [1, 8, 16, 32, 64]]
        # Where version 2 is refused, qemu-img has switched lazy_refcounts off by then; the clusters of
        # bitmaps it leaves as leaks.
        zstd = self.shape.options.get("compression_type") == "zstd"
        if not (zstd or self.shape.subclusters or self.shape.refcount_bits != 16 or self.bitmaps):
            options.append("compat=0.10")
        option = r.choice(options)
        key, value = option.split("=")

        def then():
            if key == "compat":
                self.v2 = value == "0.10"
            elif key == "refcount_bits":
                self.shape.refcount_bits = int(value)
        return self.img("amend", "-f", "qcow2", "-o", option, "DISK", then=then,
                        may_refuse=key == "refcount_bits")

    def check(self):
        if self.bitmaps and self.snapshots:
            return self.take_snapshot()  # qemu-img check -r loses the snapshots of such an image
        return self.img("check", "-q", "-r", self.random.choice(["leaks", "all"]), "DISK")

    def next(self):
        """The operations of one batch; they end with one on the image as a whole, if any."""
        kinds = ([self.take_snapshot] * 3 + [self.apply_snapshot] * 2 + [self.delete_snapshot] * 2 +
                 [self.resize] * 3 + [self.rebase] + [self.bitmap] * 2 + [self.amend, self.check])
        kinds += [self.commit] * 2 if self.backing else []
        return [self.io, *([self.random.choice(kinds)] if self.random.random() < 0.7 else [])]


class Run:
    """One pair of images from their creation to the last batch."""

    def __init__(self, t, seed):
        self.t, self.seed = t, seed
        self.shape = Shape(seed)
        self.operations = []

    def play(self):
        twins = Twins(self.t, self.shape)
        generator = Generator(self.shape)
        self.comparable = generator.comparable
        for batch in range(BATCHES):
            for draw in generator.next():
                operation = draw()
                self.operations.append(operation)
                done = twins.run(operation)
                self.follow(twins, generator, operation, done)
            deep = batch % 5 == 4 or batch + 1 == BATCHES
            twins.verify(generator.comparable if deep else None)
        return sum(len(operation.get("commands", [1])) for operation in self.operations)

    def follow(self, twins, generator, operation, done):
        then = operation.pop("then", None)
        if not (done is True and then):
            return
        generator.grown_from = None
        then()
        if generator.grown_from is not None:
            self.operations.append(self.hide_what_was_cut_off(generator))
            twins.run(self.operations[-1])

    def hide_what_was_cut_off(self, generator):
        """QEMU keeps the bytes of the last cluster that shrinking cut off, and shows them again; with
        falloc also what its file still held behind the last cluster in use."""
        start = generator.grown_from
        end = min(-(-start // generator.cluster) * generator.cluster, generator.size)
        if "falloc" in self.operations[-1]["words"]:
            end = generator.size
        command = f"write -q -z {start} {end - start}" if end > start else "flush"
        ours = command if generator.bitmaps else "flush"  # bitmaps would tell the difference
        return {"kind": "io", "roles": self.operations[-1]["roles"], "commands": [(ours, command)],
                "options": {program: ["-f", "qcow2", "DISK"] for program in "vq"}}

    def replay(self, operations, comparable):
        twins = Twins(self.t, Shape(self.seed))
        for operation in operations:
            twins.run(operation)
        twins.verify(comparable)

    def story(self, operations, most):
        lines = [f"seed {self.seed}: {' '.join(self.shape.creation())}"]
        for operation in operations:
            if operation["kind"] == "img":
                lines.append(f"[{operation['roles']}] img {' '.join(operation['words'])}")
                continue
            lines.append(f"[{operation['roles']}] io {operation['options']}")
            lines += ["    " + (ours if ours == theirs else f"{ours}   (QEMU: {theirs})")
                      for ours, theirs in operation["commands"]]
        return "\n".join(lines[:1] + (["…"] if len(lines) > most else []) + lines[1:][-most:])


def fresh_folder(t):
    for path in t.dir.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def play(t, seed):
    """Returns how many operations were done; a Failure tells the seed and what happened last."""
    run = Run(t, seed)
    try:
        return run.play()
    except Failure as error:
        t.path("story").write_text(run.story(run.operations, 10**6))
        if arguments.minimise:
            run.operations = cut_down(t, run, error)
        raise Failure(f"{error}\n{run.story(run.operations, 80)}\n"
                      f"again: iotests/run iotests/qcow2/differential.py --seed {seed}") from None


def kind_of(failure):
    return re.sub(r"[0-9]+", "N", str(failure))[:200]


def cut_down(t, run, failure):
    def fails(operations):
        fresh_folder(t)
        try:
            run.replay(operations, run.comparable)
        except Failure as error:
            return kind_of(error) == wanted
        return False
    wanted = kind_of(failure)
    return minimise(run.operations, fails, lambda text: print(f"# {text}", file=sys.stderr))


@case
def twins_stay_equal(t):
    installed("qemu-img")
    installed("qemu-io")
    first = arguments.seed
    if first is None:
        first = random.SystemRandom().randrange(1 << 32) if arguments.seconds else 1
    end = time.monotonic() + (arguments.seconds or DEFAULT_SECONDS)
    images = operations = 0
    while True:
        seed = first + images
        print(f"# seed {seed}", flush=True)
        operations += play(t, seed)
        fresh_folder(t)
        images += 1
        if time.monotonic() > end or (arguments.seed is not None and not arguments.seconds):
            break
    print(f"# {operations} operations on {images} pairs of images", flush=True)


DEFAULT_SECONDS = 100
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--seed", type=int, help="of the first pair of images; alone: of the only one")
parser.add_argument("--seconds", type=float, help=f"how long to go on; {DEFAULT_SECONDS} if not given")
parser.add_argument("--minimise", action="store_true", help="cut a failing sequence down")
arguments, sys.argv[1:] = parser.parse_known_args()
main()
