"""Two images that take the same operations, one through our programs, one through QEMU's.

An operation is plain data, so that a list of them can be replayed and cut down:

    {"kind": "io", "roles": "vq", "options": {"v": […], "q": […]}, "commands": [(ours, theirs), …]}
    {"kind": "img", "roles": "vq", "words": […], "may_refuse": False}

`roles` says who works on twin a and who on twin b: v is our program, q is QEMU's. In `words` DISK
stands for the image. `may_refuse`: one program may do it and the other refuse; then neither did.
"""
import shutil

from vise_iotest import *

from qcow2_bitmaps import Directory

TWINS = ["a", "b"]
NAMES = {"v": "vise", "q": "qemu"}


class Twins:
    """The folders a and b hold the images; `shape` is what differential.Shape made."""

    def __init__(self, t, shape):
        self.t, self.shape = t, shape
        for twin in TWINS:
            t.path(twin).mkdir()
        for name, data in shape.sources().items():
            t.write(name, data)
        for name, content in shape.bases().items():
            self.make_base(name, content)
        for twin, program in zip(TWINS, shape.roles):
            self.img(program, twin, shape.creation())

    def make_base(self, name, content):
        t = self.t
        for twin in TWINS:
            if name.endswith(".raw"):
                t.write(f"{twin}/{name}", content)
                continue
            t.write("content", content)
            t.qemu_img("convert", "-f", "raw", "-O", "qcow2", *self.shape.base_words(name), "content",
                       f"{twin}/{name}")

    # ---- running

    def img(self, program, twin, words, code=0):
        words = [word.replace("DISK", f"{twin}/disk.qcow2") for word in words]
        return getattr(self.t, f"{NAMES[program]}_img")(*words, code=code)

    def run(self, operation):
        """Lets both do it. Returns whether it was done (img) or what each command printed (io)."""
        return self.run_io(operation) if operation["kind"] == "io" else self.run_img(operation)

    def run_img(self, operation):
        if operation["may_refuse"]:
            for twin in TWINS:
                shutil.rmtree(self.t.path(f"{twin}.kept"), ignore_errors=True)
                self.t.run("cp", "-a", "--sparse=always", twin, f"{twin}.kept")
        results = [self.img(program, twin, operation["words"], code=(0, 1))
                   for twin, program in zip(TWINS, operation["roles"])]
        codes = [result.code for result in results]
        if codes[0] != codes[1]:
            told = "\n".join(map(str, results))
            self.t.check(operation["may_refuse"], f"one did it, the other refused\n{told}")
        if operation["may_refuse"] and codes != [0, 0]:
            for twin in TWINS:
                shutil.rmtree(self.t.path(twin))
                self.t.path(f"{twin}.kept").rename(self.t.path(twin))
        return codes == [0, 0]

    def run_io(self, operation):
        printed = []
        for twin, program in zip(TWINS, operation["roles"]):
            lines = [pair[0 if program == "v" else 1] for pair in operation["commands"]]
            words = [word.replace("DISK", f"{twin}/disk.qcow2")
                     for word in operation["options"][program]]
            result = getattr(self.t, f"{NAMES[program]}_io")(
                *words, stdin="".join(line + "\n" for line in lines), code=(0, 1))
            printed.append(_by_command(result.stdout))
            self.t.equal(len(printed[-1]), len(lines) + 1, f"prompts\n{result}")
        for ours, theirs, pair in zip(*printed, operation["commands"]):
            self.t.equal(ours, theirs, f"what {pair} printed on a and b ({operation['roles']}):")
        return printed[0]

    # ---- what must hold

    def verify(self, snapshots=None):
        """Compares and checks the twins; with a collection of snapshots also these, and the bases."""
        t = self.t
        for program in NAMES.values():
            run_img = getattr(t, f"{program}_img")
            found = run_img("compare", "-f", "qcow2", "-F", "qcow2", "a/disk.qcow2", "b/disk.qcow2")
            t.check("mismatch" not in found.stdout, f"sizes\n{found}")
            for twin in TWINS:
                run_img("check", "-f", "qcow2", f"{twin}/disk.qcow2")
        if "data_file_raw" in self.shape.options:
            for twin in TWINS:
                t.vise_img("compare", "-f", "raw", "-F", "qcow2", f"{twin}/disk.qcow2.data",
                           f"{twin}/disk.qcow2")
        infos = [_comparable(t.vise_img("info", "--output=json", "a/disk.qcow2").json),
                 _comparable(t.qemu_img("info", "--output=json", "b/disk.qcow2").json)]
        t.equal(*infos, "info")
        if infos[0]["bitmaps"]:
            t.equal(*[Directory(t, f"{twin}/disk.qcow2").summary() for twin in TWINS], "bitmaps")
        if snapshots is not None:
            self.verify_bases()
            for name in infos[0]["snapshots"]:
                if name in snapshots:
                    self.verify_snapshot(name)

    def verify_bases(self):
        for name in self.shape.bases():
            format = name.rpartition(".")[2]
            self.t.vise_img("compare", "-f", format, "-F", format, f"a/{name}", f"b/{name}")
            if format == "qcow2":
                for twin in TWINS:
                    self.t.sound(f"{twin}/{name}")

    def verify_snapshot(self, name):
        """Both programs find the same in it, up to the size that QEMU shows: the disk's."""
        t, read = self.t, []
        for program, twin in itertools.product(NAMES.values(), TWINS):
            getattr(t, f"{program}_img")("convert", "-l", f"snapshot.name={name}", "-f", "qcow2", "-O",
                                         "raw", f"{twin}/disk.qcow2", "out.raw")
            read.append((f"{program} on {twin}", t.read("out.raw")))
        common = min(len(data) for _, data in read)
        for who, data in read[1:]:
            t.check(data[:common] == read[0][1][:common],
                    f"snapshot {name}: {who} and {read[0][0]} differ")


def _by_command(stdout):
    """What each command printed, without the figures of time, and failures without their reason."""
    parts = re.split(r"(?:vise|qemu)-io> ", stdout)[1:]
    result = []
    for part in parts:
        lines = [line for line in part.splitlines() if not re.search(r" ops; .*/sec", line)]
        result.append([re.sub(r"failed: .*", "failed", line) for line in lines])
    return result


def _comparable(info):
    data = info.get("format-specific", {}).get("data", {})
    if "data-file" in data:
        data["data-file"] = data["data-file"].rpartition("/")[2]
    bitmaps = [(b["name"], b["granularity"], sorted(b["flags"])) for b in data.get("bitmaps", [])]
    return {
        "virtual-size": info["virtual-size"],
        "cluster-size": info["cluster-size"],
        "backing": info.get("backing-filename"),
        "dirty": info.get("dirty-flag"),
        "snapshots": [snapshot["name"] for snapshot in info.get("snapshots", [])],
        "ids": [snapshot["id"] for snapshot in info.get("snapshots", [])],
        "bitmaps": bitmaps,
        "options": {key: data.get(key) for key in
                    ["compat", "compression-type", "refcount-bits", "lazy-refcounts", "extended-l2",
                     "corrupt", "data-file", "data-file-raw"]},
    }


# ---- cutting a failing list down

def minimise(operations, fails, tell):
    """The shortest list that `fails`: whole operations are left out first, then commands."""
    def shrink(items, still_fails):
        size = max(1, len(items) // 2)
        while True:
            at = 0
            while at < len(items):
                shorter = items[:at] + items[at + size:]
                if still_fails(shorter):
                    items = shorter
                    tell(f"{len(items)} left")
                else:
                    at += size
            if size == 1:
                return items
            size = max(1, size // 2)

    operations = shrink(operations, fails)
    for index, operation in enumerate(operations):
        if operation["kind"] != "io":
            continue

        def with_commands(commands, index=index, operation=operation):
            return [*operations[:index], dict(operation, commands=commands), *operations[index + 1:]]

        commands = shrink(operation["commands"], lambda found: fails(with_commands(found)))
        operations = with_commands(commands)
    return operations
