# groups: auto
"""vise-nbd and what NBD clients see of it: libnbd's tools and QEMU's programs."""
import random
import struct

from nbd_server import *
from vise_iotest import *


def chain(t):
    """A chain of two with data, zeroes and holes in both."""
    t.qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "8M")
    t.qemu_io("-f", "qcow2", "base.qcow2",
              commands=["write -P 1 0 1M", "write -P 2 3M 192k", "write -z 4M 512k"])
    t.qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    t.qemu_io("-f", "qcow2", "top.qcow2",
              commands=["write -P 3 512k 128k", "write -z 3M 64k", "write -P 4 7M 1M"])


@cases(context=["base:allocation", "qemu:allocation-depth"])
def the_map_is_that_of_qemu_nbd(t, context):
    chain(t)
    ours = serve(t, "-A", "-r", "-f", "qcow2", "top.qcow2")
    mine = status_of(t, ours.uri(), context)
    t.equal(ours.stop(), 0, "exit status")
    theirs = serve(t, "-A", "-r", "-f", "qcow2", "top.qcow2", program="qemu-nbd", name="q.sock")
    t.equal(mine, status_of(t, theirs.uri(), context), context)
    t.check(len(mine) > 4, mine)


@case
def bitmaps_are_told_as_qemu_nbd_does(t):
    t.qemu_img("create", "-q", "-f", "qcow2", "a.qcow2", "16M")
    t.qemu_img("bitmap", "--add", "a.qcow2", "first")
    t.qemu_img("bitmap", "--add", "-g", "4k", "a.qcow2", "the second")
    t.qemu_io("-f", "qcow2", "a.qcow2", commands=["write -P 1 1M 100k", "write -P 1 9M 4k"])
    t.qemu_img("bitmap", "--disable", "a.qcow2", "first")
    t.qemu_io("-f", "qcow2", "a.qcow2", commands=["write -P 1 0 4k"])
    answers = []
    for program in ("vise-nbd", "qemu-nbd"):
        server = serve(t, "-r", "-f", "qcow2", "-B", "first", "-B", "the second", "a.qcow2",
                       program=program, name=program)
        answers.append([status_of(t, server.uri(), f"qemu:dirty-bitmap:{name}")
                        for name in ("first", "the second")])
        t.equal(server.stop(), 0, "exit status")
    t.equal(*answers, "bitmaps")
    t.equal(sum(run[1] for run in answers[0][1] if run[2] == 1), 104 * KIB + 4 * KIB, "dirty bytes")
    missing = t.run(t.tools / "vise-nbd", "-k", t.path("x"), "-B", "third", "a.qcow2", code=1)
    t.fails_clearly(missing, "third")


@case
def nbdcopy_moves_images_out_and_in(t):
    data = mixed_data(9 * MIB + 512, 64 * KIB, 5)
    t.write("a.raw", data)
    t.vise_img("convert", "-O", "qcow2", "a.raw", "a.qcow2")
    server = serve(t, "-e", "0", "-f", "qcow2", "a.qcow2")
    t.run(installed("nbdcopy"), server.uri(), "out.raw")
    t.equal(t.digest("out.raw"), t.digest("a.raw"), "copy out")
    t.qemu_img("compare", "-f", "raw", "-F", "raw", server.uri(), "a.raw")
    other = bytes(reversed(data))
    t.write("b.raw", other)
    t.run(installed("nbdcopy"), "--flush", "b.raw", server.uri())
    t.equal(server.stop(), 0, "exit status")
    t.reads_as("a.qcow2", "b.raw")
    t.sound("a.qcow2")


@case
def many_connections_see_each_others_writes(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "64M")
    server = serve(t, "-e", "0", "-f", "qcow2", "a.qcow2")
    nbdsh(t, server,
          "assert h.can_multi_conn()",
          f"others = [nbd.NBD() for _ in range(8)]",
          f"[o.connect_uri({server.uri()!r}) for o in others]",
          "for i, o in enumerate(others): o.pwrite(bytes([i + 1]) * 65536, i * 100000)",
          "others[0].flush()",
          "assert all(h.pread(65536, i * 100000) == bytes([i + 1]) * 65536 for i in range(8))")
    t.equal(server.stop(), 0, "exit status")
    t.sound("a.qcow2")


@case
def every_request_of_libnbd_does_what_it_says(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "16M")
    server = serve(t, "-f", "qcow2", "--discard=unmap", "-D", "told to people", "a.qcow2")
    nbdsh(t, server,
          "assert h.get_size() == 16 << 20 and not h.is_read_only()",
          "assert h.get_block_size(nbd.SIZE_MINIMUM) == 1",
          "assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20",
          "h.pwrite(b'x' * 70000, 12345, nbd.CMD_FLAG_FUA)",
          "assert h.pread(70002, 12344) == b'\\0' + b'x' * 70000 + b'\\0'",
          "h.zero(1000, 20000); assert h.pread(1002, 19999) == b'x' + bytes(1000) + b'x'",
          "h.zero(65536, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)",
          "h.zero(65536, 65536, nbd.CMD_FLAG_FAST_ZERO)",
          "h.trim(1 << 20, 4 << 20); h.cache(1 << 20, 0); h.flush()",
          "big = bytes(range(256)) * (32 << 12); h.set_strict_mode(0)",
          "h.pwrite(big[:12 << 20], 4 << 20); assert h.pread(12 << 20, 4 << 20) == big[:12 << 20]",
          "def refused(errno, call, *args):",
          "  try: call(*args)",
          "  except nbd.Error as error: assert error.errno == errno, error",
          "  else: raise AssertionError(args)",
          "refused('EINVAL', h.pread, 512, 16 << 20)",
          "refused('ENOSPC', h.pwrite, bytes(512), (16 << 20) - 1)",
          "refused('EINVAL', h.trim, 512, 1 << 62)",
          "assert h.pread(512, 0) == bytes(512)")
    t.equal(server.stop(), 0, "exit status")
    t.sound("a.qcow2")


@cases(codec=CODECS)
def writes_through_the_compress_filter(t, codec):
    t.vise_img("create", "-f", "qcow2", "-o", f"compression_type={codec}", "a.qcow2", "16M")
    server = serve(t, "-C", "-f", "qcow2", "a.qcow2")
    info = t.run(installed("nbdinfo"), "--json", server.uri()).json["exports"][0]
    t.equal(info["block_size_preferred"], 65536, "preferred block size")
    model = bytearray(16 * MIB)
    source = random.Random(7)
    commands = []
    for number in range(60):
        offset = source.randrange(0, 15 * MIB, 512)
        length = source.randrange(512, 200 * KIB, 512)
        value = number + 1
        if number % 7 == 6:
            commands.append(f"write -z {offset} {length}")
            value = 0
        else:
            commands.append(f"write -P {value} {offset} {length}")
        if number % 10 == 9:
            commands.append("flush")
        model[offset:offset + length] = bytes([value]) * length
    t.qemu_io("-f", "raw", server.uri(), commands=commands)
    t.write("model.raw", bytes(model))
    t.qemu_img("compare", "-f", "raw", "-F", "raw", server.uri(), "model.raw")
    t.equal(server.stop(), 0, "exit status")
    t.reads_as("a.qcow2", "model.raw")
    t.sound("a.qcow2")
    checked = t.vise_img("check", "--output=json", "a.qcow2").json
    t.check(checked["compressed-clusters"] > 20, checked)


@cases(codec=CODECS)
def a_backup_job_of_qemu_pushes_into_the_compress_filter(t, codec):
    installed("qemu-storage-daemon")
    data = mixed_data(16 * MIB, 64 * KIB, 11)
    t.write("source.raw", data)
    t.vise_img("create", "-f", "qcow2", "-o", f"compression_type={codec}", "backup.qcow2", "16M")
    server = serve(t, "-C", "-f", "qcow2", "backup.qcow2")
    commands = [
        {"execute": "qmp_capabilities"},
        {"execute": "blockdev-backup", "arguments": {"job-id": "b", "device": "src", "target": "dst",
                                                     "sync": "full", "auto-dismiss": False}}]
    daemon = subprocess.Popen(
        [installed("qemu-storage-daemon"), "--blockdev", "driver=file,node-name=f,filename=source.raw",
         "--blockdev", "driver=raw,node-name=src,file=f", "--blockdev",
         f"driver=nbd,node-name=dst,server.type=unix,server.path={server.path}",
         "--chardev", "stdio,id=m", "--monitor", "m"],
        cwd=t.dir, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        for command in commands:
            daemon.stdin.write(json.dumps(command) + "\n")
        daemon.stdin.flush()
        for line in daemon.stdout:
            event = json.loads(line)
            t.check("error" not in event, line)
            if event.get("data", {}).get("status") == "concluded":
                break
        daemon.stdin.write('{"execute": "query-jobs"}\n{"execute": "quit"}\n')
        daemon.stdin.flush()
        rest = daemon.stdout.read()
        t.check('"error"' not in rest, rest)
    finally:
        daemon.stdin.close()
        daemon.kill()
        daemon.wait()
    t.equal(server.stop(), 0, "exit status")
    t.reads_as("backup.qcow2", "source.raw")
    t.sound("backup.qcow2")
    checked = t.vise_img("check", "--output=json", "backup.qcow2").json
    t.check(checked["compressed-clusters"] > 50, checked)


@case
def qemu_converts_from_and_to_the_server(t):
    data = mixed_data(8 * MIB, 64 * KIB, 3)
    t.write("a.raw", data)
    t.vise_img("convert", "-c", "-O", "qcow2", "a.raw", "a.qcow2")
    server = serve(t, "-f", "qcow2", "a.qcow2")
    t.qemu_img("convert", "-f", "raw", "-O", "qcow2", server.uri(), "copy.qcow2")
    t.reads_as("copy.qcow2", "a.raw")
    t.qemu_img("convert", "-n", "-f", "raw", "-O", "raw", "a.raw", server.uri())
    t.equal(server.stop(), 0, "exit status")
    t.reads_as("a.qcow2", "a.raw")


def handshake(server):
    """A raw socket in transmission, simple replies."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(server.path)
    client.recv(18, socket.MSG_WAITALL)
    client.sendall(struct.pack(">IQIII", 3, 0x49484156454F5054, 7, 6, 0) + struct.pack(">H", 0))
    while True:
        head = client.recv(20, socket.MSG_WAITALL)
        _, _, kind, length = struct.unpack(">QIII", head)
        client.recv(length, socket.MSG_WAITALL)
        if kind == 1:
            return client


@case
def clients_that_vanish_lie_or_stall_cost_only_themselves(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "64M")
    server = serve(t, "-e", "0", "-f", "qcow2", "--handshake-limit=2", "a.qcow2")
    request = lambda kind, offset, length: struct.pack(">IHHQQI", 0x25609513, 0, kind, 1, offset, length)
    cut_short = handshake(server)
    cut_short.sendall(request(1, 0, 65536) + b"z" * 65535)
    cut_short.close()
    silent = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for client in silent:
        client.connect(server.path)
    liar = handshake(server)
    liar.sendall(request(1, 0, 0xFFFFFFFF) + b"y" * 100)
    greedy = handshake(server)
    greedy.settimeout(5)
    try:
        greedy.sendall(request(0, 0, 32 * MIB) * 20000)
    except (TimeoutError, socket.timeout):
        pass
    t.equal(liar.recv(1), b"", "the liar is cut off")
    nbdsh(t, server, "assert h.pread(65536, 0) == bytes(65536)", "h.pwrite(b'q' * 512, 0); h.flush()")
    resident = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1])
    t.check(resident < 300 * 1024, f"{resident} KiB of memory")
    for client in silent:
        client.settimeout(30)
        t.equal(client.recv(18, socket.MSG_WAITALL)[:8], b"NBDMAGIC", "greeting")
        t.equal(client.recv(1), b"", "the silent are cut off")
        client.close()
    t.equal(server.stop(), 0, "exit status")
    t.sound("a.qcow2")


@case
def killed_in_the_middle_of_writes_nothing_flushed_is_lost(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "64M")
    server = serve(t, "-C", "-e", "0", "-f", "qcow2", "a.qcow2")
    nbdsh(t, server, "for i in range(64): h.pwrite(bytes([i + 1]) * 4096, i * 1000000)", "h.flush()",
          "buf = b'u' * 65536",
          "for i in range(200): h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(buf)), i * 262144 + 131072)",
          "import os; os.kill(%d, 9)" % server.process.pid)
    server.wait()
    t.qemu_img("check", "-r", "leaks", "a.qcow2", code=[0, 3])
    again = serve(t, "-r", "-f", "qcow2", "a.qcow2", name="again")
    nbdsh(t, again,
          "for i in range(64):",
          "  got = h.pread(4096, i * 1000000)",
          "  assert all(b in (i + 1, ord('u')) for b in got), (i, got[:9])")


main()
