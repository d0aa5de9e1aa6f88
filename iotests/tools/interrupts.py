# groups: rw auto
"""Ctrl-C and its kin: the program dies of the signal, and leaves a valid image or none. SIGUSR1 tells
how far long work is."""
import subprocess

from vise_iotest import *

SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP}


class Running:
    """A vise-img that works while the test looks on."""

    def __init__(self, t, *arguments):
        self.process = subprocess.Popen([str(t.tools / "vise-img"), *map(str, arguments)], cwd=t.dir,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.seen = b""

    def wait_until_it_runs(self):
        """Until main() has begun: it holds SIGUSR1 back."""
        bit = 1 << (signal.SIGUSR1 - 1)
        while self.process.poll() is None:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            if int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16) & bit:
                return
        raise Failure(f"ended early: {self.process.stderr.read()}")

    def wait_for_progress(self, marks=2):
        """Reads until so many progress lines have come."""
        while self.seen.count(b"\r") < marks:
            chunk = os.read(self.process.stdout.fileno(), 4096)
            if not chunk:
                raise Failure(f"ended early: {self.seen} {self.process.stderr.read()}")
            self.seen += chunk

    def send(self, number):
        self.process.send_signal(number)

    def end(self, seconds=30):
        try:
            stdout, stderr = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise Failure("still running after the signal") from None
        return self.process.returncode, (self.seen + stdout).decode(), stderr.decode()


def raw_source(t, size=16 * MIB, seed=5):
    t.write("raw", random.Random(seed).randbytes(size))


@cases(name=list(SIGNALS), target=["qcow2", "raw", "compressed"])
def convert_leaves_no_half_image(t, name, target):
    raw_source(t)
    form = {"qcow2": ["-O", "qcow2"], "raw": ["-O", "raw"], "compressed": ["-c", "-O", "qcow2"]}[target]
    work = Running(t, "convert", "-p", "-r", "4M", *form, "raw", "new")
    work.wait_for_progress()
    t.check(t.path("new").exists(), "no target while it is being made")
    work.send(SIGNALS[name])
    code, _, stderr = work.end()
    t.equal(code, -SIGNALS[name], f"exit status ({stderr})")
    t.check(not t.path("new").exists(), "half a target was left")


@case
def convert_over_an_old_file_leaves_none(t):
    raw_source(t)
    t.vise_img("create", "-f", "qcow2", "old", "1M")
    t.path("link").symlink_to("old")
    work = Running(t, "convert", "-p", "-r", "4M", "-O", "qcow2", "raw", "link")
    work.wait_for_progress()
    work.send(signal.SIGINT)
    t.equal(work.end()[0], -signal.SIGINT, "exit status")
    t.check(not t.path("old").exists(), "half a target was left behind the link")


@cases(compress=[False, True])
def convert_into_an_existing_image_leaves_it_whole(t, compress):
    raw_source(t)
    t.vise_img("create", "-f", "qcow2", "old", "20M")
    t.vise_io("-f", "qcow2", "old", commands=["write -P 7 19M 1M"])
    work = Running(t, "convert", "-n", "-p", "-r", "4M", *(["-c"] if compress else []), "-O", "qcow2",
                   "raw", "old")
    work.wait_for_progress()
    work.send(signal.SIGINT)
    code, _, stderr = work.end()
    t.equal(code, -signal.SIGINT, f"exit status ({stderr})")
    t.sound("old")
    t.vise_io("-f", "qcow2", "old", commands=["read -P 7 19M 1M"])
    t.vise_img("convert", "-O", "raw", "old", "back")
    source, back = t.read("raw"), t.read("back")
    for at in range(0, len(source), 64 * KIB):
        t.check(back[at:at + 64 * KIB] in (source[at:at + 64 * KIB], bytes(64 * KIB)),
                f"neither old nor new at {at}")


@case
def a_refused_target_is_not_removed(t):
    raw_source(t, MIB)
    t.vise_img("create", "-f", "qcow2", "old", "1M")
    before = t.digest("old")
    holder = t.hold("vise-io", "-f", "qcow2", "old")
    t.vise_img("convert", "-O", "qcow2", "raw", "old", code=1)
    holder.end()
    t.equal(t.digest("old"), before, "the locked image")


def overlay(t, size=8):
    """top.qcow2 above base.qcow2, above raw data, of `size` MiB; the disk holds what expected does."""
    raw_source(t, size * MIB)
    t.vise_img("convert", "-O", "qcow2", "raw", "base.qcow2")
    t.vise_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", f"{size}M")
    t.write("noise", random.Random(9).randbytes(6 * MIB))
    t.vise_io("-f", "qcow2", "top.qcow2", commands=["write -s noise 1M 6M"])
    t.vise_img("convert", "-O", "raw", "top.qcow2", "expected")


@case
def commit_keeps_the_disk(t):
    overlay(t)
    work = Running(t, "commit", "-p", "-r", "2M", "top.qcow2")
    work.wait_for_progress()
    work.send(signal.SIGTERM)
    code, _, stderr = work.end()
    t.equal(code, -signal.SIGTERM, f"exit status ({stderr})")
    t.sound("base.qcow2")
    t.sound("top.qcow2")
    t.reads_as("top.qcow2", "expected")
    t.vise_img("commit", "top.qcow2")
    t.reads_as("base.qcow2", "expected")


def slow(image, iops):
    """Options that open a qcow2 image whose file takes few requests a second."""
    return ["--object", f"throttle-group,id=slow,x-iops-total={iops}", "--image-opts",
            f"driver=qcow2,file.driver=throttle,file.throttle-group=slow,file.file.driver=file,"
            f"file.file.filename={image}"]


@case
def rebase_keeps_the_disk(t):
    overlay(t, 32)
    t.vise_img("create", "-f", "qcow2", "other.qcow2", "32M")
    work = Running(t, "rebase", "-p", "-b", "other.qcow2", "-F", "qcow2", *slow("top.qcow2", 10))
    work.wait_for_progress()
    work.send(signal.SIGINT)
    code, _, stderr = work.end()
    t.equal(code, -signal.SIGINT, f"exit status ({stderr})")
    t.sound("top.qcow2")
    t.reads_as("top.qcow2", "expected")
    t.vise_img("rebase", "-b", "other.qcow2", "-F", "qcow2", "top.qcow2")
    t.reads_as("top.qcow2", "expected")


@case
def dd_leaves_no_half_image(t):
    raw_source(t, 64 * MIB)
    work = Running(t, "dd", "-O", "qcow2", "--object", "throttle-group,id=slow,x-bps-total=8388608",
                   "--image-opts",
                   "if=driver=throttle,throttle-group=slow,file.driver=raw,file.file.filename=raw",
                   "of=new")
    while not t.path("new").exists() or t.path("new").stat().st_size < MIB:
        t.check(work.process.poll() is None, "dd ended early")
    work.send(signal.SIGINT)
    t.equal(work.end()[0], -signal.SIGINT, "exit status")
    t.check(not t.path("new").exists(), "half a target was left")


@case
def create_leaves_no_half_image(t):
    folder = t.tmpfs("big", "2g")
    work = Running(t, "create", "-q", "-f", "qcow2", "-o", "preallocation=full", folder / "new", "1900M")
    while not (folder / "new").exists() or (folder / "new").stat().st_blocks < 2048:
        t.check(work.process.poll() is None, "create ended early")
    work.send(signal.SIGINT)
    t.equal(work.end()[0], -signal.SIGINT, "exit status")
    t.check(not (folder / "new").exists(), "half an image was left")


# Work that may stop anywhere: killed a while after its start, at ever other moments.
def damaged(t):
    """disk.qcow2 with two leaked clusters; its content is expected."""
    t.vise_img("convert", "-O", "qcow2", "raw", "disk.qcow2")
    with open(t.path("disk.qcow2"), "r+b") as file:
        file.seek(0x20000 + 2 * 300)
        file.write(b"\0\1\0\1")
        file.truncate(64 * KIB * 310)


WORK = {
    "amend -o refcount_bits=64": ["amend", "-o", "refcount_bits=64"],
    "amend -o refcount_bits=1": ["amend", "-o", "refcount_bits=1"],
    "amend -o compat=0.10": ["amend", "-o", "compat=0.10"],
    "check -r all": ["check", "-r", "all"],
    "resize": ["resize", "--preallocation=metadata"],
    "snapshot -c": ["snapshot", "-c", "now"],
    "snapshot -a": ["snapshot", "-a", "then"],
    "snapshot -d": ["snapshot", "-d", "then"],
}


@cases(work=list(WORK), name=["INT", "TERM"])
def what_is_changed_in_place_stays_valid(t, work, name):
    raw_source(t, 4 * MIB)
    for delay in (0.0, 0.02, 0.07, 0.15, 0.3, 0.6):
        if work == "check -r all":
            damaged(t)
        else:
            t.vise_img("convert", "-O", "qcow2", "raw", "disk.qcow2")
        if work in ("snapshot -a", "snapshot -d"):
            t.vise_img("snapshot", "-c", "then", "disk.qcow2")
        after = ["64M"] if work == "resize" else []
        # -- ends the options: the name given to --image-opts is the operand.
        running = Running(t, *WORK[work], *slow("disk.qcow2", 60), *after)
        try:
            running.process.wait(delay)
        except subprocess.TimeoutExpired:
            pass
        running.send(SIGNALS[name])
        code, _, stderr = running.end()
        t.check(code in (0, -SIGNALS[name]), f"exit status {code} after {delay} s ({stderr})")
        allowed = (0, 2, 3) if work == "check -r all" else (0, 3)
        t.vise_img("check", "-f", "qcow2", "disk.qcow2", code=allowed)
        t.vise_img("check", "-r", "all", "-f", "qcow2", "disk.qcow2")
        t.sound("disk.qcow2")
        t.vise_img("compare", "-f", "qcow2", "-F", "raw", "disk.qcow2", "raw")


@cases(command=["convert", "commit", "rebase", "compare", "amend", "check"])
def the_signal_shows_progress(t, command):
    overlay(t)
    t.vise_img("create", "-f", "qcow2", "other.qcow2", "8M")
    arguments = {
        "convert": ["convert", "-r", "8M", "-O", "raw", "top.qcow2", "out"],
        "commit": ["commit", "-q", "-r", "8M", "top.qcow2"],
        "rebase": ["rebase", "-b", "other.qcow2", "-F", "qcow2", *slow("top.qcow2", 50)],
        "amend": ["amend", "-o", "compat=0.10", *slow("top.qcow2", 50)],
        "check": ["check", "-q", *slow("top.qcow2", 5)],
        "compare": ["compare", "-q", *slow("top.qcow2", 50)[:3],
                    slow("top.qcow2", 50)[3], "driver=raw,file.filename=expected"],
    }[command]
    work = Running(t, *arguments)
    work.wait_until_it_runs()
    # Lines come for as long as signals do; the first one may come before the work has begun.
    lines = b""
    os.set_blocking(work.process.stderr.fileno(), False)
    while work.process.poll() is None and lines.count(b"\n") < 3:
        work.send(signal.SIGUSR1)
        lines += work.process.stderr.read() or b""
    code, stdout, _ = work.end(60)
    t.equal((code, stdout), (0, ""), "exit status and standard output")
    t.check(re.match(r"    \(\d+\.\d\d/100%\)\n", lines.decode()), lines)


@case
def other_commands_survive_the_signal_silently(t):
    t.vise_img("create", "-f", "qcow2", "disk.qcow2", "1M")
    work = Running(t, "info", *slow("disk.qcow2", 2))
    work.wait_until_it_runs()
    work.send(signal.SIGUSR1)
    code, stdout, stderr = work.end()
    t.equal((code, stderr), (0, ""), "exit status and standard error")
    t.check("virtual size" in stdout, stdout)


main()
