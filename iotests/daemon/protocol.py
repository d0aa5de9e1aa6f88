"""The QMP protocol of vise-storage-daemon: negotiation, errors, odd input, several monitors."""
import json
import random
import signal
import socket
import subprocess
import threading
import time

from nbd_server import NbdServer
from qmp import Daemon, Qmp
from vise_iotest import case, cases, main

OBJECT = '{"execute": "query-block-exports", "id": 1}'


@case
def commands_wait_for_the_negotiation(t):
    daemon = Daemon(t)
    daemon.qmp.close()
    qmp = daemon.qmp = Qmp(daemon.path, negotiate=False)
    t.equal(sorted(qmp.greeting["QMP"]), ["capabilities", "version"])
    t.check("CommandNotFound" in qmp.fails("query-version"), "before the negotiation")
    t.check("CommandNotFound" in qmp.fails("no-such-command"), "before the negotiation")
    t.check("oob" in qmp.fails("qmp_capabilities", enable=["oob"]), "oob is not offered")
    qmp.execute("qmp_capabilities", enable=[])
    t.check("CommandNotFound" in qmp.fails("qmp_capabilities"), "twice")
    t.equal(qmp.execute("query-version"), qmp.greeting["QMP"]["version"])
    daemon.quit()


@case
def commands_wait_until_all_options_have_taken_effect(t):
    """The monitor comes first, and the server of the image is there late."""
    t.vise_img("create", "-f", "raw", "disk.raw", "1M")
    servers = []

    def serve_late():
        time.sleep(0.5)
        servers.append(NbdServer(t, "vise-nbd", "-f", "raw", "disk.raw"))

    late = threading.Thread(target=serve_late)
    late.start()
    daemon = Daemon(t, "--blockdev", "driver=nbd,node-name=late,open-timeout=20,server.type=unix,"
                    f"server.path={t.path('s.sock')}")
    names = [node["node-name"] for node in daemon.execute("query-named-block-nodes")]
    t.equal(names, ["late"])
    daemon.quit()
    late.join()
    servers[0].stop()


@case
def every_command_of_the_schema_is_listed(t):
    daemon = Daemon(t)
    schema = daemon.execute("query-qmp-schema")
    commands = {entity["name"] for entity in schema if entity["meta-type"] == "command"}
    t.equal(commands, {command["name"] for command in daemon.execute("query-commands")})
    names = [entity["name"] for entity in schema]
    t.equal(len(names), len(set(names)))
    daemon.quit()


def shape(schema, name, seen=()):
    """What a type is made of, without the meaningless names of types; members by name."""
    entity = schema[name]
    kind = entity["meta-type"]
    if name in seen:
        return "recursive"
    seen = (*seen, name)
    if kind == "builtin":
        return entity["json-type"]
    if kind == "enum":
        return "enum"
    if kind == "array":
        return [shape(schema, entity["element-type"], seen)]
    if kind == "alternate":
        return "alternate"
    return {member["name"]: (shape(schema, member["type"], seen), "default" in member)
            for member in entity["members"]}


LATER = ("handshake-max-seconds", "backing-mask-protocol", "discard-source", "allow-inactive",
         "active")


@case
def commands_take_what_those_of_qemu_take(t):
    ours, theirs = Daemon(t), Daemon(t, binary="qemu", name="peer")
    left = {entity["name"]: entity for entity in ours.execute("query-qmp-schema")}
    right = {entity["name"]: entity for entity in theirs.execute("query-qmp-schema")}
    compared = 0
    for name, entity in left.items():
        if entity["meta-type"] not in ("command", "event") or name not in right:
            continue
        mine = shape(left, entity["arg-type"])
        other = shape(right, right[name]["arg-type"])
        for member, (type_, optional) in mine.items():
            # Of a later QEMU than Debian's; and what only drive-mirror has there.
            if member in LATER or (name, member) == ("blockdev-mirror", "unmap"):
                continue
            t.check(member in other, f"{name}: QEMU knows no '{member}'")
            if isinstance(type_, str) and isinstance(other[member][0], str):
                t.equal(type_, other[member][0], f"{name}: type of '{member}'")
            t.equal(optional, other[member][1], f"{name}: '{member}' is optional")
        missing = [member for member, (_, optional) in other.items()
                   if not optional and member not in mine]
        t.check(not missing, f"{name}: lacks {missing}")
        compared += 1
    t.check(compared >= 8, f"only {compared} compared")
    ours.quit()
    theirs.quit()


@case
def input_of_any_shape_gets_an_answer(t):
    daemon = Daemon(t)
    qmp = daemon.qmp
    for text, part in [
        ('{"execute": "query-block-exports", "id": {"a": [null, 1.5, "\\u00e9"]}}', None),
        ("{'execute': 'query-block-exports'}", None),
        ("[1]", "must be a JSON object"),
        ("xx\n", "xx"),
        ("{}", "lacks member 'execute'"),
        ('{"execute": 7}', "must be a string"),
        ('{"execute": "query-version", "arguments": null}', "must be an object"),
        ('{"execute": "query-version", "arguments": {"x": 1}}', "'x' is unexpected"),
        ('{"execute": "query-version", "foo": 1}', "'foo' is unexpected"),
        ('{"exec-oob": "query-version"}', "'exec-oob' is unexpected"),
        ('{"execute": "a", "execute": "b"}', "duplicate"),
        ('{"execute": "query-version",}', "JSON"),
        ('{"execute": "query-\x01', "control"),
        ('{"execute": ]', "stray ']'"),
        ("}", "stray"),
        ("[" * 1025, "depth"),
    ]:
        answer = qmp.raw(text)
        if part is None:
            t.equal(answer["return"], [], text)
        else:
            t.equal(answer["error"]["class"], "GenericError", text)
            t.check(part in answer["error"]["desc"], f"{text[:80]}: {answer}")
    answer = qmp.raw('{"execute": "nope", "id": "\\ud83d\\ude00"}')
    t.equal(answer, {"id": "\U0001f600",
                     "error": {"class": "CommandNotFound",
                               "desc": "The command nope has not been found"}})
    for byte in OBJECT:
        qmp.send(byte)
    t.equal(qmp.answer(), {"return": [], "id": 1})
    qmp.send(OBJECT * 300)
    t.equal([qmp.answer() for _ in range(300)], [{"return": [], "id": 1}] * 300)
    daemon.quit()


@cases(seed=[1, 2, 3])
def broken_json_never_ends_the_daemon(t, seed):
    daemon = Daemon(t)
    source = random.Random(seed)
    whole = [OBJECT, '{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "file": {}}}',
             '{"execute": "object-add", "arguments": {"qom-type": "secret", "id": "s"}}']
    for _ in range(400):
        text = bytearray(source.choice(whole).encode())
        for _ in range(source.randrange(1, 6)):
            where = source.randrange(len(text))
            kind = source.randrange(3)
            if kind == 0:
                text[where] = source.randrange(256)
            elif kind == 1:
                del text[where:where + source.randrange(1, 9)]
            else:
                text[where:where] = source.choice([b"{", b"]", b'"', b"\\", b"[[", b"\xff", b"1e9"])
            if not text:
                text = bytearray(b"x")
        daemon.qmp.send(bytes(text))
    # A byte that UTF-8 does not have brings the parser back from any state.
    daemon.qmp.send(b'\xff{"execute": "query-version", "id": "last"}')
    while daemon.qmp.answer().get("id") != "last":
        pass
    t.equal(daemon.execute("query-named-block-nodes"), [])
    daemon.quit()


@case
def monsters_of_one_client_leave_the_others_served(t):
    second = t.path("second.sock")
    daemon = Daemon(t, "--chardev", f"socket,id=n,path={second},server=on,wait=off",
                    "--monitor", "chardev=n")
    monsters = [b"[" * 1_000_000,                                          # too deep
                b'{"execute": "' + b"x" * (65 << 20),                      # too long
                b"[" + b"1," * ((1 << 20) + 9),                            # too many tokens
                b'{"execute": "query-version", "id": "' + b"y" * (8 << 20) + b'"}',
                b'{"execute": "blockdev-add", "arguments": ' + b'{"file":' * 900,
                b'{"execute": "query-ver']                                 # and gone
    for monster in monsters:
        other = Qmp(second)
        sender = threading.Thread(target=send_until_cut_off, args=(other.socket, monster))
        reader = threading.Thread(target=read_until_cut_off, args=(other.socket,))
        sender.start()
        reader.start()
        while sender.is_alive():
            t.equal(daemon.execute("query-block-exports"), [])
            sender.join(0.02)
        other.socket.shutdown(socket.SHUT_RDWR)
        reader.join()
        other.close()
    t.equal(daemon.execute("query-named-block-nodes"), [])
    other = Qmp(second)
    t.equal(other.execute("query-block-exports"), [])
    other.close()
    daemon.quit()


def send_until_cut_off(client, data):
    try:
        client.sendall(data)
    except OSError:
        pass


def read_until_cut_off(client):
    try:
        while client.recv(1 << 20):
            pass
    except OSError:
        pass


@case
def each_monitor_negotiates_alone(t):
    second = t.path("second.sock")
    daemon = Daemon(t, "--chardev", f"socket,id=n,path={second},server=on,wait=off",
                    "--monitor", "chardev=n,pretty=on")
    other = socket.socket(socket.AF_UNIX)
    other.connect(str(second))
    text = b""
    while not text.endswith(b"}\r\n"):
        text += other.recv(4096)
    t.equal(json.loads(text)["QMP"]["capabilities"], [])
    t.check(b"\r\n    " in text, f"pretty output is indented: {text}")
    other.sendall(OBJECT.encode())
    t.check(b"CommandNotFound" in other.recv(4096), "the other monitor has not negotiated")
    t.equal(daemon.execute("query-block-exports"), [])
    other.close()
    daemon.quit()


@case
def a_client_waits_for_the_one_before(t):
    daemon = Daemon(t)
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(str(daemon.path))
    waiting.sendall(b'{"execute": "qmp_capabilities"}')
    waiting.settimeout(0.2)
    try:
        t.check(not waiting.recv(1), "greeted while another client is served")
    except TimeoutError:
        pass
    daemon.qmp.close()
    waiting.settimeout(30)
    text = b""
    while text.count(b"\n") < 2:
        text += waiting.recv(4096)
    t.equal(json.loads(text.splitlines()[1]), {"return": {}})
    waiting.close()
    daemon.qmp = Qmp(daemon.path)
    daemon.quit()


@case
def a_client_that_never_reads_costs_only_itself(t):
    second = t.path("second.sock")
    daemon = Daemon(t, "--chardev", f"socket,id=n,path={second},server=on,wait=off",
                    "--monitor", "n")
    deaf = socket.socket(socket.AF_UNIX)
    deaf.connect(str(second))
    deaf.setblocking(False)
    request = b'{"execute": "qmp_capabilities"}' + b'{"execute": "query-qmp-schema"}' * 2000
    sent = 0
    deadline = time.monotonic() + 3
    while sent < len(request) and time.monotonic() < deadline:
        try:
            sent += deaf.send(request[sent:])
        except BlockingIOError:
            t.equal(daemon.execute("query-block-exports"), [])
    for _ in range(50):
        t.equal(daemon.execute("query-block-exports"), [])
    peak = [line for line in open(f"/proc/{daemon.process.pid}/status") if line.startswith("VmHWM")]
    t.check(int(peak[0].split()[1]) < 256 * 1024, f"memory of a deaf client: {peak}")
    started = time.monotonic()
    daemon.quit()
    t.check(time.monotonic() - started < 20, "a deaf client keeps the daemon from ending")
    deaf.close()


@case
def nodes_come_and_go_by_name(t):
    t.vise_img("create", "-f", "qcow2", "base.qcow2", "8M")
    t.vise_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    answers = {}
    for binary in ("vise", "qemu"):
        daemon = Daemon(t, binary=binary, name=binary)
        qmp = daemon.qmp
        qmp.execute("blockdev-add", driver="qcow2", node_name="top",
                    file={"driver": "file", "filename": "top.qcow2", "node-name": "inline"})
        errors = [qmp.fails("blockdev-add", driver="qcow2", node_name="top", file="inline"),
                  qmp.fails("blockdev-add", driver="null-co"),
                  qmp.fails("blockdev-add", driver="raw", node_name="x", file="missing"),
                  qmp.fails("blockdev-add", driver="file", node_name="x", filename="missing"),
                  qmp.fails("blockdev-del", node_name="inline"),
                  qmp.fails("blockdev-del", node_name="missing")]
        t.check(all(error.startswith("GenericError") for error in errors), errors)
        nodes = {node["node-name"]: node for node in qmp.execute("query-named-block-nodes")}
        flat = {node["node-name"]: node for node in qmp.execute("query-named-block-nodes", flat=True)}
        t.equal(flat["top"]["backing_file_depth"], 0)
        t.check("backing-image" not in flat["top"]["image"], "flat leaves the chain out")
        # A newer QEMU tells more than 7.2 does; what both tell must be the same.
        answers[binary] = nodes["top"]
        qmp.execute("blockdev-del", node_name="top")
        t.equal(qmp.execute("query-named-block-nodes"), [])
        daemon.quit()
    for key, value in answers["qemu"].items():
        if key != "image":
            t.equal(answers["vise"].get(key), value, f"member '{key}'")
    for key, value in answers["qemu"]["image"].items():
        if key != "backing-image":
            t.equal(answers["vise"]["image"].get(key), value, f"member 'image.{key}'")


@case
def the_command_line_opens_nodes_and_objects_in_order(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "8M")
    daemon = Daemon(t, "--object", "throttle-group,id=slow,limits.bps-total=1048576",
                    "--object", "iothread,id=io0",
                    "--object", '{"qom-type": "secret", "id": "key", "data": "c2VjcmV0", '
                                '"format": "base64"}',
                    "--blockdev", "driver=file,filename=a.qcow2,node-name=f",
                    "--blockdev", '{"driver": "qcow2", "file": "f", "node-name": "q"}',
                    "--blockdev", "throttle,throttle-group=slow,file=q,node-name=t")
    names = [node["node-name"] for node in daemon.execute("query-named-block-nodes")]
    t.equal(names, ["t", "q", "f"])
    t.check("is used" in daemon.qmp.fails("blockdev-del", node_name="q"), "a node in use")
    t.check("in use" in daemon.qmp.fails("object-del", id="slow"), "an object in use")
    daemon.execute("blockdev-del", node_name="t")
    daemon.execute("object-del", id="slow")
    t.check("not found" in daemon.qmp.fails("object-del", id="slow"), "it is gone")
    pid_file = t.path("qmp.pid")  # which every Daemon() asks for
    t.equal(int(pid_file.read_text()), daemon.process.pid)
    daemon.kill(signal.SIGTERM)
    t.check(not pid_file.exists() and not daemon.path.exists(), "pid file and socket remain")


@cases(arguments=[("--blockdev", "qcow2,node-name=q,file=missing"),
                  ("--blockdev", '{"driver": "null-co"}'),
                  ("--blockdev", '{"driver": "null-co", "node-name": "n"} x'),
                  ("--blockdev", "null-co,node-name=n,size=1x"),
                  ("--monitor", "nobody"),
                  ("--chardev", "socket,id=x"),
                  ("--chardev", "socket,id=x,path=p,server=on,wait=off,reconnect=1"),
                  ("--chardev", "stdio"),
                  ("--object", "nothing,id=x"),
                  ("--object", "secret,id=x"),
                  ("--export", "nbd,id=1,node-name=n"),
                  ("--no-such-option",), ("operand",),
                  ("--pidfile", "missing/pid"),
                  ("--daemonize", "--chardev", "stdio,id=s")])
def bad_command_lines_end_at_once(t, arguments):
    result = t.run(t.tools / "vise-storage-daemon", *arguments, code=1)
    t.fails_clearly(result)


@case
def a_daemon_in_the_background_is_ready_when_its_parent_ends(t):
    t.run(t.tools / "vise-storage-daemon", "--daemonize", "--pidfile", "pid",
          "--chardev", "socket,id=m,path=m.sock,server=on,wait=off", "--monitor", "m")
    qmp = Qmp(t.path("m.sock"))
    busy = t.run(t.tools / "vise-storage-daemon", "--pidfile", "pid", code=1)
    t.fails_clearly(busy, "pid")
    qmp.execute("quit")
    deadline = time.monotonic() + 30
    while t.path("pid").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    t.check(not t.path("pid").exists() and not t.path("m.sock").exists(), "files remain")


@case
def a_listening_socket_can_be_inherited_and_readiness_is_told(t):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(t.path("given.sock")))
    listener.listen()
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(t.path("notify.sock")))
    notify.settimeout(30)
    t.env["NOTIFY_SOCKET"] = str(t.path("notify.sock"))
    t.env["LISTEN_FDNAMES"] = "unused:qmp"
    # The shell puts the socket where a service manager would.
    process = subprocess.Popen(
        ["sh", "-c", 'exec 4<&"$0" 3</dev/null && exec "$@"', str(listener.fileno()),
         str(t.tools / "vise-storage-daemon"), "--chardev",
         "socket,id=m,fd=qmp,server=on,wait=off", "--monitor", "m"],
        env=t.env, pass_fds=[listener.fileno()], cwd=t.dir)
    t.equal(notify.recv(100), b"READY=1")
    qmp = Qmp(t.path("given.sock"))
    qmp.execute("quit")
    t.equal(notify.recv(100), b"STOPPING=1")
    t.equal(process.wait(30), 0)


main()
