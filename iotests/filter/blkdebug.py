# groups: quick auto
"""blkdebug answers as QEMU's: breakpoints, rules, names."""
from vise_iotest import *

FILTERS = [(r"qemu-(img|io)", r"vise-\1"), (r"disk size: .*", "disk size: X"),
           (r"[0-9.:]+ sec \(.*\)|\d+:\d\d:\d\d\.\d\d \(.*\)", "TIME"),
           (r"(?s)Child node .*", "")]


def filtered(text):
    for pattern, replacement in FILTERS:
        text = re.sub(pattern, replacement, text)
    return text


def same(t, *arguments, commands):
    """Both programs print the same on stdout and end alike."""
    installed("qemu-io")
    theirs = t.qemu_io(*arguments, commands=commands, code=None)
    ours = t.vise_io(*arguments, commands=commands, code=None)
    t.equal(filtered(ours.stdout), filtered(theirs.stdout), "output")
    t.equal(ours.code, theirs.code, "exit status")


def images(t):
    t.write("r.raw", bytes(MIB))
    t.vise_img("create", "-q", "-f", "qcow2", "a.qcow2", "1M")


@cases(commands=[
    ["break write_aio A", "aio_write 0 512", "wait_break A", "resume A", "aio_flush"],
    ["break write_aio A", "aio_write 64k 512", "wait_break A", "remove_break A", "aio_flush"],
    ["break read_aio A", "write 0 512", "aio_read 0 512", "wait_break A", "resume A", "aio_flush"],
    ["break l2_update A", "remove_break A", "write 0 512"],
    ["resume A", "remove_break A", "break nothing A", "break", "wait_break", "resume", "break A"],
    ["break write_aio A", "break write_aio A", "aio_write 0 512", "wait_break A",
     "aio_write 128k 512", "resume A", "sleep 400", "resume A", "aio_flush"],
])
def breakpoints_print_the_same(t, commands):
    images(t)
    same(t, "-f", "qcow2", "blkdebug::a.qcow2", commands=commands)


@cases(event=["read_aio", "write_aio"])
def requests_of_raw_images_can_be_stopped(t, event):
    images(t)
    command = {"read_aio": "aio_read 0 512", "write_aio": "aio_write 0 512"}[event]
    same(t, "-f", "raw", "blkdebug::r.raw",
         commands=[f"break {event} A", command, "wait_break A", "resume A", "aio_flush"])


@cases(event=["read_aio", "write_aio", "flush_to_os", "flush_to_disk"])
def raw_images_tell_what_they_do(t, event):
    images(t)
    t.write("conf", f'[set-state]\nevent = "{event}"\nstate = "1"\nnew_state = "2"\n\n'
                    '[inject-error]\nevent = "pwritev"\nstate = "2"\n'.encode())
    same(t, "-t", "writeback", "-f", "raw", "blkdebug:conf:r.raw",
         commands=["write 4k 512", "read 0 512", "flush", "write 8k 512"])


@case
def breakpoints_need_blkdebug(t):
    images(t)
    same(t, "-f", "qcow2", "a.qcow2", commands=["break write_aio A", "remove_break A", "resume A"])


@case
def padding_can_be_stopped_step_by_step(t):
    images(t)
    options = "driver=raw,file.driver=blkdebug,file.image.filename=r.raw,file.align=4096"
    commands = []
    for event in ("pwritev_rmw_head", "pwritev_rmw_after_head", "pwritev_rmw_tail",
                  "pwritev_rmw_after_tail", "pwritev", "pwritev_done"):
        commands += [f"break {event} A", "aio_write 100 512", "wait_break A", "resume A", "aio_flush"]
    same(t, "--image-opts", options, commands=commands)


@cases(rules=[
    "inject-error.0.event=none",
    "inject-error.0.event=none,file.inject-error.0.once=on",
    "inject-error.0.event=none,file.inject-error.0.errno=28,file.inject-error.0.immediately=on",
    "inject-error.0.event=none,file.inject-error.0.sector=2",
    "inject-error.0.event=none,file.inject-error.0.iotype=write",
    "inject-error.0.event=pwritev,file.inject-error.0.iotype=read",
    "inject-error.0.event=pwritev,file.inject-error.0.state=2,file.set-state.0.event=pwritev,"
    "file.set-state.0.state=1,file.set-state.0.new_state=2",
    "align=4096", "align=1024,file.max-transfer=2048", "align=3", "align=4096,file.max-transfer=5000",
    "inject-error.0.event=nix", "inject-error.0.errno=5", "nix=1",
])
def rules_have_the_same_effect(t, rules):
    images(t)
    options = f"driver=raw,file.driver=blkdebug,file.image.filename=r.raw,file.{rules}"
    # (By itself qemu-io flushes after each write.)
    same(t, "-t", "writeback", "--image-opts", options,
         commands=["read 0 512", "write 0 512", "read 1024 512", "write 1k 8k", "read 0 512",
                   "write -z 4k 4k", "read 4k 8k"])


CONFIGS = {
    "empty": "", "comment": "# nothing\n", "always": '[inject-error]\nevent = "none"\n',
    "sector and state": '[inject-error]\nevent = "pwritev"\nerrno = "28"\nsector = "4"\n\n'
                        '[set-state]\nevent = "pwritev"\nstate = "1"\nnew_state = "2"\n',
    "section": "[foo]\n", "event": '[inject-error]\nevent = "nix"\n',
    "title": '[inject-error "one"]\nevent = "write_aio"\nsector = "4"\n'
             '[inject-error "two"]\nevent = "read_aio"\nsector = "0"\nerrno = "28"\n',
    "title of nothing": '[foo "one"]\nevent = "none"\n',
    "key": '[inject-error]\nfoo = "1"\n', "quotes": "[inject-error]\nevent = none\n",
    "no section": 'event = "none"\n', "no event": '[inject-error]\nerrno = "5"\n',
}


@cases(config=list(CONFIGS))
def files_with_rules_have_the_same_effect(t, config):
    images(t)
    t.write("conf", CONFIGS[config].encode())
    same(t, "-f", "raw", "blkdebug:conf:r.raw",
         commands=["write 0 512", "read 2k 512", "write 2k 512", "read 2k 512", "read 0 512"])


@case
def a_file_that_is_not_there_is_named(t):
    images(t)
    t.fails_clearly(t.vise_io("-f", "raw", "blkdebug:nix:r.raw", commands=["read 0 1"], code=1), "nix")


@cases(arguments=[["-f", "qcow2", "blkdebug::a.qcow2"], ["blkdebug:conf:a.qcow2"], ["blkdebug::r.raw"],
                  ["--image-opts", "driver=qcow2,file.driver=blkdebug,file.image.filename=a.qcow2"],
                  ["--image-opts", "driver=qcow2,file.driver=blkdebug,file.config=conf,"
                                   "file.image.filename=a.qcow2"],
                  ["--image-opts", "driver=qcow2,file.driver=blkdebug,file.align=4096,"
                                   "file.image.filename=a.qcow2"]])
def info_prints_the_name_back(t, arguments):
    installed("qemu-img")
    images(t)
    t.write("conf", b"")
    t.equal(filtered(t.vise_img("info", *arguments).stdout), filtered(t.qemu_img("info", *arguments).stdout),
            "output")


main()
