# groups: auto
"""The command line of vise-nbd."""
import struct

from nbd_server import *
from vise_iotest import *


def image(t, name="a.qcow2", size="4M"):
    t.vise_img("create", "-f", "qcow2", name, size)
    return name


def nbd(t, *arguments, **how):
    return t.run(t.tools / "vise-nbd", *arguments, **how)


def list_of(t, server, program="vise-nbd"):
    path = t.tools / program if program.startswith("vise") else installed(program)
    return t.run(path, "-L", "-k", server.path).stdout


@cases(options=[[], ["-r"], ["-e", "0"], ["-A", "-D", "some text", "-x", "name"]])
def the_list_is_that_of_qemu_nbd(t, options):
    image(t)
    server = serve(t, *options, "-f", "qcow2", "a.qcow2")
    ours = list_of(t, server)
    theirs = list_of(t, server, "qemu-nbd")
    without = lambda text: [l for l in text.splitlines() if "transaction size" not in l]
    t.equal(without(ours), without(theirs), "lists of one server")
    server.stop()
    qemu = serve(t, *options, "-f", "qcow2", "a.qcow2", program="qemu-nbd", name="q")
    t.equal(without(list_of(t, qemu)), without(ours), "lists of two servers")


@case
def the_server_ends_with_its_last_client_unless_it_is_persistent(t):
    image(t)
    server = serve(t, "-f", "qcow2", "a.qcow2", persistent=False)
    list_of(t, server)
    t.check(server.process.poll() is None, "a look at the list ended the server")
    nbdsh(t, server, "h.pwrite(b'1' * 512, 0)")
    t.equal(server.wait(), 0, "exit status")
    t.check(not t.path("s.sock").exists(), "the socket file is still there")
    stays = serve(t, "-f", "qcow2", "a.qcow2")
    nbdsh(t, stays, "assert h.pread(512, 0) == b'1' * 512")
    nbdsh(t, stays, "h.pwrite(b'2' * 512, 0)")
    t.equal(stays.stop(), 0, "exit status")
    t.sound("a.qcow2")


@cases(number=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def signals_end_it_in_order(t, number):
    image(t)
    server = serve(t, "-C", "-f", "qcow2", "a.qcow2")
    nbdsh(t, server, "h.pwrite(b'1' * 5000, 0)")
    t.equal(server.stop(number), 0, "exit status")
    t.check(not t.path("s.sock").exists(), "the socket file is still there")
    t.sound("a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 0x31 0 5000"])


@case
def fork_returns_when_the_server_listens(t):
    image(t)
    done = nbd(t, "--fork", "--pid-file", "pid", "-t", "-k", t.path("s"), "-f", "qcow2", "a.qcow2")
    pid = int(t.read("pid"))
    try:
        t.equal(done.output, "", "output")
        t.equal(os.readlink(f"/proc/{pid}/cwd"), "/", "working directory")
        t.equal({os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)}, {"/dev/null"}, "streams")
        t.equal(os.getsid(pid), pid, "session")
        t.run(installed("nbdinfo"), "--size", f"nbd+unix:///?socket={t.path('s')}")
    finally:
        os.kill(pid, signal.SIGTERM)
    for _ in range(500):
        if not t.path("s").exists():
            break
        time.sleep(0.02)
    t.check(not t.path("s").exists(), "the socket file is still there")
    t.equal(int(t.read("pid")), pid, "the pid file stays")
    failed = nbd(t, "--fork", "-k", t.path("s"), "-f", "qcow2", "missing.qcow2", code=1)
    t.fails_clearly(failed, "missing.qcow2")


@case
def one_client_at_a_time_by_default(t):
    image(t)
    server = serve(t, "-f", "qcow2", "a.qcow2")
    nbdsh(t, server,
          "assert not h.can_multi_conn()",
          "import socket; s = socket.socket(socket.AF_UNIX)",
          f"s.connect({server.path!r}); s.settimeout(0.3)",
          "try: s.recv(18); raise AssertionError('greeted')",
          "except socket.timeout: pass",
          "h.shutdown(); s.settimeout(30); assert s.recv(18)[:8] == b'NBDMAGIC'")


@case
def a_part_of_the_image_from_an_offset_on(t):
    data = mixed_data(3 * MIB, 4096, 9)
    t.write("a.raw", data)
    t.write("tail.raw", data[MIB + 512:])
    server = serve(t, "-f", "raw", "-o", MIB + 512, "a.raw")
    t.qemu_img("compare", "-f", "raw", "-F", "raw", server.uri(), "tail.raw")
    t.qemu_io("-f", "raw", server.uri(), commands=["write -P 1 0 512"])
    server.stop()
    t.equal(t.read("a.raw"), data[:MIB + 512] + b"\1" * 512 + data[MIB + 1024:], "the file")
    t.fails_clearly(nbd(t, "-o", "1M", "a.raw", "-k", t.path("x"), code=1), "1M", "--offset")
    t.fails_clearly(nbd(t, "-f", "raw", "-o", 4 * MIB, "a.raw", "-k", t.path("x"), code=1), "offset")


@case
def odd_sizes_are_exported_as_whole_sectors(t):
    t.write("a.raw", b"x" * 1000001)
    server = serve(t, "-f", "raw", "a.raw")
    nbdsh(t, server, "assert h.get_size() == 1000448", "h.pwrite(b'y' * 512, 999424)",
          "assert h.pread(1024, 999424) == b'y' * 512 + b'x' * 65 + bytes(447)")
    server.stop()
    t.equal(len(t.read("a.raw")), 1000001, "size of the file")


@case
def read_only_exports_take_no_writes(t):
    image(t)
    before = t.digest("a.qcow2")
    server = serve(t, "-r", "-f", "qcow2", "a.qcow2")
    nbdsh(t, server, "assert h.is_read_only()", "h.set_strict_mode(0)",
          "try: h.pwrite(bytes(512), 0)",
          "except nbd.Error as error: assert error.errno == 'EPERM', error",
          "else: raise AssertionError")
    server.stop()
    t.equal(t.digest("a.qcow2"), before, "image")


@case
def snapshots_are_exported_and_overlays_forget(t):
    image(t)
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 1 0 64k"])
    t.vise_img("snapshot", "-c", "old", "a.qcow2")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 2 0 64k"])
    for selector in ("old", "snapshot.name=old"):
        server = serve(t, "-l", selector, "-f", "qcow2", "a.qcow2")
        nbdsh(t, server, "assert h.is_read_only() and h.pread(512, 0) == b'\\1' * 512")
        server.stop()
    server = serve(t, "-s", "-f", "qcow2", "a.qcow2")
    nbdsh(t, server, "h.pwrite(b'3' * 512, 0)", "assert h.pread(512, 0) == b'3' * 512")
    server.stop()
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["read -P 2 0 64k"])
    t.fails_clearly(nbd(t, "-l", "new", "-k", t.path("x"), "a.qcow2", code=1), "new")


@cases(options=[["--cache=none"], ["-n"], ["--cache=writethrough"], ["--cache=directsync"],
                ["--cache=unsafe"], ["--aio=threads"], ["--aio=io_uring"], ["-n", "--aio=native"],
                ["--discard=unmap", "--detect-zeroes=unmap"], ["--detect-zeroes=on"]])
def block_options_serve_the_same_bytes(t, options):
    image(t)
    server = serve(t, *options, "-f", "qcow2", "a.qcow2")
    nbdsh(t, server, "h.pwrite(b'1' * 70000, 1000); h.zero(5000, 2000); h.pwrite(bytes(9000), 9000)",
          "assert h.pread(70000, 1000) == b'1' * 1000 + bytes(5000) + b'1' * 2000 + bytes(9000) + "
          "b'1' * 53000")
    t.equal(server.stop(), 0, "exit status")
    t.sound("a.qcow2")


@case
def image_options_describe_the_graph(t):
    image(t)
    server = serve(t, "--image-opts", "driver=compress,level=1,file.driver=qcow2,file.file.filename=a.qcow2")
    nbdsh(t, server, "h.pwrite(b'1' * 65536, 0)")
    server.stop()
    t.equal(t.vise_img("check", "--output=json", "a.qcow2").json["compressed-clusters"], 1, "clusters")


@case
def stale_sockets_are_replaced_used_ones_are_not(t):
    image(t)
    image(t, "b.qcow2")
    server = serve(t, "-f", "qcow2", "a.qcow2")
    t.fails_clearly(nbd(t, "-k", server.path, "b.qcow2", code=1), "listens")
    server.stop(signal.SIGKILL)
    t.check(t.path("s.sock").exists(), "no stale socket")
    again = serve(t, "-f", "qcow2", "a.qcow2")
    nbdsh(t, again, "assert h.get_size() == 4 << 20")
    t.write("file", b"precious")
    t.fails_clearly(nbd(t, "-k", t.path("file"), "b.qcow2", code=1), "no socket")
    t.equal(t.read("file"), b"precious", "file")


@case
def a_tcp_port_serves_as_well(t):
    image(t)
    probe = socket.socket()
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    probe.close()
    nbd(t, "--fork", "--pid-file", "pid", "-b", "127.0.0.1", "-p", port, "-f", "qcow2", "-x", "e",
        "a.qcow2")
    try:
        t.check("export: 'e'" in nbd(t, "-L", "-b", "127.0.0.1", "-p", port).stdout, "list")
    finally:
        t.qemu_io("-f", "raw", f"nbd://127.0.0.1:{port}/e", commands=["write -P 1 0 1M"])
    t.vise_io("-f", "qcow2", "-U", "-r", "a.qcow2", commands=["read -P 1 0 1M"])


@cases(count=["1", "2"])
def systemd_passes_a_socket(t, count):
    image(t)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(t.path("s.sock")))
    listener.listen()
    # The shell's pid becomes the server's; the socket goes where systemd puts it.
    script = f"exec 3<&{listener.fileno()}; export LISTEN_PID=$$ LISTEN_FDS={count}; exec \"$@\""
    process = subprocess.Popen(["sh", "-c", script, "sh", str(t.tools / "vise-nbd"), "-f", "qcow2",
                                "a.qcow2"], cwd=t.dir, pass_fds=[listener.fileno()],
                               stderr=subprocess.PIPE, text=True)
    listener.close()
    if count == "1":
        t.run(installed("nbdinfo"), "--size", f"nbd+unix:///?socket={t.path('s.sock')}")
    _, errors = process.communicate(timeout=30)
    t.equal(process.returncode, 0 if count == "1" else 1, errors)
    t.check(t.path("s.sock").exists(), "the socket of systemd is gone")


@cases(arguments=[
    ["-L", "a.qcow2"], ["-L", "-f", "raw"], ["a.qcow2", "b.qcow2"], [], ["--nonsense", "a.qcow2"],
    ["-k", "relative", "a.qcow2"], ["-e", "-1", "a.qcow2"], ["-e", "1k", "a.qcow2"],
    ["--cache=fast", "a.qcow2"], ["-n", "--cache=none", "a.qcow2"], ["--aio=native", "a.qcow2"],
    ["--discard=maybe", "a.qcow2"], ["--detect-zeroes=unmap", "a.qcow2"],
    ["--image-opts", "-f", "raw", "a.qcow2"], ["-C", "-r", "a.qcow2"],
    ["-c", "/dev/nbd0", "a.qcow2"], ["-d", "/dev/nbd0"], ["--selinux-label=l", "a.qcow2"],
    ["-p", "no-such-service", "a.qcow2"], ["-C", "-f", "raw", "a.raw"], ["--pid-file=/no/such", "a.qcow2"],
    ["-L", "-k", "/no/such/socket"]])
def bad_command_lines_fail_clearly(t, arguments):
    image(t)
    t.write("a.raw", bytes(MIB))
    socket_option = [] if {"-k", "-p", "-L", "-d"} & set(arguments) else ["-k", str(t.path("s"))]
    t.fails_clearly(nbd(t, *socket_option, *arguments, code=1, timeout=20))


@cases(option=["-x", "-D"])
def long_texts_are_refused(t, option):
    image(t)
    refused = nbd(t, "-k", t.path("s"), option, "x" * 4097, "a.qcow2", code=1)
    t.fails_clearly(refused, "4097", "4096")


main()
