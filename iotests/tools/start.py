# groups: quick auto
"""What a program loads before it does anything, and what it loads only when that is needed."""
import pty
import shutil
import termios
import threading

import vise_iotest
from nbd_server import *
from qmp import Qmp
from vise_iotest import *

PROGRAMS = ["vise-img", "vise-io", "vise-nbd", "vise-storage-daemon"]
# Each brings others with it, and all of them are linked before main() runs.
LATE = ["libnbd", "libxml2", "libicuuc", "libgnutls", "libp11-kit", "libnettle", "libedit", "libbsd"]


def built_with_modules(t):
    if not list(t.build.rglob("modules/nbd.so")):
        raise Skip("built without plugins")


def loaded_by(t, *command):
    """The shared objects that the dynamic loader maps while it runs."""
    shown = t.run(*command, env={"LD_DEBUG": "files"}).stderr
    return set(re.findall(r"calling init: (\S+)", shown))


@cases(program=PROGRAMS)
def large_libraries_are_not_loaded_for_nothing(t, program):
    built_with_modules(t)
    names = loaded_by(t, t.tools / program, "--version")
    t.check(any("libvise.so" in name for name in names), f"this is the list: {names}")
    t.equal([name for name in names if any(late in name for late in LATE)], [], "loaded")


@case
def images_in_files_need_none_of_them(t):
    built_with_modules(t)
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    names = loaded_by(t, t.tools / "vise-img", "info", "a.qcow2")
    t.equal([name for name in names if any(late in name for late in LATE)], [], "loaded")


@case
def an_nbd_node_loads_libnbd(t):
    built_with_modules(t)
    t.write("a.raw", bytes(MIB))
    server = serve(t, "-f", "raw", "a.raw")
    names = loaded_by(t, t.tools / "vise-img", "info", "-f", "raw", server.uri())
    t.check(any("modules/nbd.so" in name for name in names), f"the module is missing: {names}")
    t.check(any("libnbd.so" in name for name in names), f"libnbd is missing: {names}")


def server_credentials(t):
    """An object that makes our programs read keys with GnuTLS."""
    t.path("psk").mkdir()
    t.write("psk/keys.psk", b"alice:" + b"0123456789abcdef" * 4 + b"\n")
    return "tls-creds-psk,id=tls0,dir=psk,endpoint=server"


@case
def servers_load_gnutls_where_clients_must_use_tls(t):
    built_with_modules(t)
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    names = loaded_by(t, t.tools / "vise-img", "info", "--object", server_credentials(t), "a.qcow2")
    t.check(any("modules/tls.so" in name for name in names), f"the module is missing: {names}")
    t.check(any("libgnutls.so" in name for name in names), f"GnuTLS is missing: {names}")
    t.equal([name for name in names if "libnbd" in name], [], "libnbd")


class Terminal:
    """vise-io on a terminal of its own, which does not echo."""

    def __init__(self, t, *arguments, env=None):
        self.master, slave = pty.openpty()
        mode = termios.tcgetattr(slave)
        mode[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, mode)
        command = [str(t.tools / "vise-io"), *arguments]
        self.process = subprocess.Popen(command, cwd=t.dir, env={**t.env, "TERM": "dumb", **(env or {})},
                                        stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        vise_iotest._running.append(self.process)

    def type(self, text):
        os.write(self.master, text.encode())

    def read_all(self):
        """What it shows until it ends, and its exit status."""
        timer = threading.Timer(60, self.process.kill)
        timer.start()
        shown = b""
        while True:
            try:
                part = os.read(self.master, 4096)
            except OSError:  # EIO: nobody is on the other side any more
                part = b""
            if not part:
                break
            shown += part
        code = self.process.wait()
        timer.cancel()
        os.close(self.master)
        vise_iotest._running.remove(self.process)
        return shown.decode(errors="replace"), code


@case
def lines_are_edited_and_recalled_on_a_terminal(t):
    linked_in = any("libedit" in name for name in loaded_by(t, t.tools / "vise-io", "--version"))
    if not linked_in and not list(t.build.rglob("modules/line_editor.so")):
        raise Skip("built without libedit")
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    terminal = Terminal(t, "-f", "qcow2", "a.qcow2")
    terminal.type("write -q -P 3 0 1k\x01\x0b" + "write -P 3 64k 512X\x7f\n")  # ^A ^K: all away
    terminal.type("\x10\n")  # ^P: the line before
    terminal.type("quit\n")
    shown, code = terminal.read_all()
    t.equal(code, 0, "exit status")
    t.equal(shown.count("wrote 512/512 bytes at offset 65536"), 2, "writes")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 3 64k 512", "read -P 0 0 1k"])


@case
def without_the_line_editor_lines_are_plain(t):
    env = with_library_alone(t)
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "1M")
    terminal = Terminal(t, "-f", "qcow2", "a.qcow2", env=env)
    terminal.type("write -P 3 0 512\nquit\n")
    shown, code = terminal.read_all()
    if "line_editor.so" not in shown:
        raise Skip("built without libedit, or another Vise is installed on this machine")
    t.equal(code, 0, "exit status")
    t.check("warning: The module 'line_editor.so' is not installed" in shown, shown)
    t.check("wrote 512/512 bytes at offset 0" in shown, shown)


def with_library_alone(t):
    """The environment in which programs use a copy of libvise that has no modules beside it."""
    built_with_modules(t)
    library = next(t.build.rglob("libvise.so.0"))
    t.path("lib").mkdir()
    shutil.copy(library.resolve(), t.path("lib/libvise.so.0"))
    return {"LD_LIBRARY_PATH": str(t.path("lib"))}


@case
def a_missing_module_is_named(t):
    env = with_library_alone(t)
    t.write("a.raw", bytes(MIB))
    t.vise_img("info", "-f", "raw", "a.raw", env=env)  # does not need it
    refused = t.vise_img("info", "nbd://localhost/", code=1, env=env)
    if "not installed" not in refused.stderr:
        raise Skip("another Vise is installed on this machine")
    t.fails_clearly(refused, "nbd.so", str(t.path("lib/vise/modules")))


@cases(module=["nbd", "tls"])
def a_broken_module_is_named(t, module):
    env = with_library_alone(t)
    t.path("lib/vise/modules").mkdir(parents=True)
    t.write(f"lib/vise/modules/{module}.so", b"this is no shared object")
    t.write("a.raw", bytes(MIB))
    words = {"nbd": ["nbd://localhost/"], "tls": ["--object", server_credentials(t), "a.raw"]}
    refused = t.vise_img("info", *words[module], code=1, env=env)
    t.fails_clearly(refused, str(t.path(f"lib/vise/modules/{module}.so")), "Could not load module")


@case
def the_plugin_path_has_no_say_in_modules(t):
    env = with_library_alone(t)
    t.path("lib/vise/modules").mkdir(parents=True)
    shutil.copy(next(t.build.rglob("modules/nbd.so")), t.path("lib/vise/modules/nbd.so"))
    t.path("plugins").mkdir()
    for name in ["nbd.so", "vise-nbd.so"]:
        t.write(f"plugins/{name}", b"this is no shared object")
    t.write("a.raw", bytes(MIB))
    server = serve(t, "-f", "raw", "a.raw")
    t.vise_img("info", "-f", "raw", server.uri(),
               env={**env, "VISE_PLUGIN_PATH": str(t.path("plugins"))})


@case
def a_daemon_finds_modules_from_where_it_was_started(t):
    with_library_alone(t)
    t.path("lib/vise/modules").mkdir(parents=True)
    shutil.copy(next(t.build.rglob("modules/nbd.so")), t.path("lib/vise/modules/nbd.so"))
    t.run(t.tools / "vise-storage-daemon", "--daemonize", "--chardev",
          "socket,id=m,path=m.sock,server=on,wait=off", "--monitor", "m",
          env={"LD_LIBRARY_PATH": "lib"})
    qmp = Qmp(t.path("m.sock"))
    error = qmp.fails("blockdev-add", driver="nbd", node_name="n",
                      server={"type": "unix", "path": "/missing"})
    qmp.execute("quit")
    t.check("/missing" in error and "nbd.so" not in error, error)


main()
