# groups: auto
"""TLS with certificates and with keys that both sides know: vise-nbd, our nbd driver, and peers."""
import struct

from nbd_server import *
from vise_iotest import *

TEMPLATES = {
    "ca": "cn = the authority\nca\ncert_signing_key\n",
    "server": "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\n"
              "encryption_key\nsigning_key\n",
    "client": "cn = somebody\norganization = a firm\ntls_www_client\nencryption_key\nsigning_key\n",
}


def certificates(t, folder="tls", authority=None):
    """ca-cert, server-cert and client-cert with keys; signed by the authority of another folder."""
    path = t.path(folder)
    path.mkdir()
    make = lambda *words: t.run(installed("certtool"), *words, timeout=60)
    for name, text in TEMPLATES.items():
        (path / f"{name}.info").write_text(text + "expiration_days = 10\n")
        key, cert, info = path / f"{name}-key.pem", path / f"{name}-cert.pem", path / f"{name}.info"
        make("--generate-privkey", "--key-type", "ecdsa", "--outfile", key)
        if name == "ca":
            make("--generate-self-signed", "--load-privkey", key, "--template", info, "--outfile", cert)
        else:
            make("--generate-certificate", "--load-privkey", key, "--template", info, "--outfile", cert,
                 "--load-ca-certificate", path / "ca-cert.pem", "--load-ca-privkey", path / "ca-key.pem")
    return path


def keys(t, folder="psk", name="alice"):
    path = t.path(folder)
    path.mkdir()
    t.run(installed("psktool"), "-u", name, "-p", path / "keys.psk")
    return path


def x509(folder, endpoint, **more):
    words = [f"tls-creds-x509,id=tls0,dir={folder},endpoint={endpoint}"]
    return ",".join(words + [f"{key.replace('_', '-')}={value}" for key, value in more.items()])


def psk(folder, endpoint, **more):
    return x509(folder, endpoint, **more).replace("x509", "psk")


def free_port():
    probe = socket.socket()
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    probe.close()
    return port


class TcpServer(NbdServer):
    """vise-nbd or qemu-nbd on a TCP port of this host."""

    def __init__(self, t, program, *arguments):
        self.t, self.program, self.port = t, program, free_port()
        binary = str(t.tools / program) if program.startswith("vise") else installed(program)
        self.log = open(t.path("tcp.log"), "w+b")
        self.process = subprocess.Popen([binary, "-t", "-b", "127.0.0.1", "-p", str(self.port),
                                         *map(str, arguments)], cwd=t.dir, env=t.env,
                                        stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        vise_iotest_running().append(self.process)
        deadline = time.monotonic() + 60
        while True:
            if self.process.poll() is not None:
                raise Failure(f"{program} has ended: {self.errors()}")
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise Failure(f"{program} does not listen") from None
                time.sleep(0.02)


def vise_iotest_running():
    import vise_iotest
    return vise_iotest._running


def image(t):
    t.vise_img("create", "-f", "qcow2", "a.qcow2", "4M")
    t.vise_io("-f", "qcow2", "a.qcow2", commands=["write -P 5 0 4M"])


@case
def qemu_and_libnbd_use_keys_with_our_server(t):
    image(t)
    folder = keys(t)
    server = serve(t, "-e", "4", "--object", psk(folder, "server"), "--tls-creds", "tls0", "-f", "qcow2",
                   "a.qcow2")
    options = f"driver=nbd,path={server.path},tls-creds=tls0"
    t.qemu_io("--object", psk(folder, "client", username="alice"), "--image-opts", options,
              commands=["write -P 6 1M 1M", "read -P 5 0 1M", "read -P 6 1M 1M"])
    uri = f"nbds+unix://alice@/?socket={server.path}&tls-psk-file={folder}/keys.psk"
    t.check("with TLS" in t.run(installed("nbdinfo"), uri).stdout, "TLS is not used")
    t.run(installed("nbdcopy"), uri, "out.raw")
    t.equal(t.digest("out.raw"), hashlib.sha256(b"\5" * MIB + b"\6" * MIB + b"\5" * 2 * MIB).hexdigest(),
            "copy")
    # In plain text there is no way in.
    plain = t.run(installed("nbdinfo"), server.uri(), code=1)
    t.check("Operation not supported" in plain.stderr, plain)
    other = keys(t, "other")
    refused = t.qemu_io("--object", psk(other, "client", username="alice"), "--image-opts", options,
                        commands=["read 0 512"], code=1)
    t.check("handshake" in refused.stderr.lower(), refused)
    t.equal(server.stop(), 0, "exit status")
    t.sound("a.qcow2")


@cases(program=["vise-nbd", "qemu-nbd"])
def our_client_uses_keys(t, program):
    image(t)
    folder = keys(t)
    server = serve(t, "-e", "4", "--object", psk(folder, "server"), "--tls-creds", "tls0", "-f", "qcow2",
                   "a.qcow2", program=program)
    words = ["--image-opts", f"driver=raw,file.driver=nbd,file.path={server.path},file.tls-creds=tls0"]
    t.vise_io("--object", psk(folder, "client", username="alice"), *words,
              commands=["read -P 5 0 4M", "write -P 7 12345 1000000", "read -P 7 12345 1000000"])
    listed = t.run(t.tools / "vise-nbd", "-L", "-k", server.path, "--object",
                   psk(folder, "client", username="alice"), "--tls-creds", "tls0").stdout
    t.check("exports available: 1" in listed, listed)
    t.fails_clearly(t.vise_io("--object", psk(folder, "client", username="bob"), *words,
                              commands=["read 0 512"], code=1))
    t.fails_clearly(t.vise_io("-f", "raw", server.uri(), commands=["read 0 512"], code=1), "TLS")
    t.equal(server.stop(), 0, "exit status")
    t.sound("a.qcow2")


@case
def certificates_are_verified_on_both_sides(t):
    image(t)
    ours, other = certificates(t), certificates(t, "other")
    server = TcpServer(t, "vise-nbd", "-e", "4", "--object", x509(ours, "server"), "--tls-creds", "tls0",
                       "-f", "qcow2", "a.qcow2")
    options = f"driver=nbd,host=localhost,port={server.port},tls-creds=tls0"
    for program in (t.vise_io, t.qemu_io):
        program("--object", x509(ours, "client"), "--image-opts", options, commands=["read -P 5 0 4M"])
        program("--object", x509(other, "client"), "--image-opts", options, commands=["read 0 512"], code=1)
    nobody = t.path("nobody")
    nobody.mkdir()
    shutil.copy(ours / "ca-cert.pem", nobody)
    t.qemu_io("--object", x509(nobody, "client"), "--image-opts", options, commands=["read 0 512"], code=1)
    t.check("NBD client: " in server.errors(), server.errors())
    server.stop()
    lenient = TcpServer(t, "vise-nbd", "--object", x509(ours, "server", verify_peer="off"), "--tls-creds",
                        "tls0", "-f", "qcow2", "a.qcow2")
    t.qemu_io("--object", x509(nobody, "client"), "--image-opts",
              options.replace(str(server.port), str(lenient.port)), commands=["read -P 5 0 4M"])
    lenient.stop()


@case
def the_certificate_must_name_the_host(t):
    image(t)
    ours = certificates(t)
    server = TcpServer(t, "qemu-nbd", "-e", "4", "--object", x509(ours, "server"), "--tls-creds", "tls0", "-f",
                       "qcow2", "a.qcow2")
    words = ["--object", x509(ours, "client"), "--image-opts"]
    right = f"driver=nbd,host=localhost,port={server.port},tls-creds=tls0"
    t.vise_io(*words, right, commands=["read -P 5 0 4M"])
    wrong = right.replace("localhost", "127.0.0.2")
    t.fails_clearly(t.vise_io(*words, wrong, commands=["read 0 512"], code=1))
    local = t.vise_io(*words, "driver=nbd,path=/s,tls-creds=tls0", commands=["read 0 512"], code=1)
    t.fails_clearly(local, "host name")
    server.stop()


@case
def only_whom_the_authorization_names_comes_in(t):
    image(t)
    ours = certificates(t)
    words = ["--object", x509(ours, "server"), "--tls-creds", "tls0", "-f", "qcow2", "a.qcow2"]
    for identity, code in (("O=a firm,CN=somebody", 0), ("CN=somebody else", 1)):
        escaped = identity.replace(",", ",,")
        server = TcpServer(t, "vise-nbd", "--object", f"authz-simple,id=who,identity={escaped}",
                           "--tls-authz", "who", *words)
        t.qemu_io("--object", x509(ours, "client"), "--image-opts",
                  f"driver=nbd,host=localhost,port={server.port},tls-creds=tls0",
                  commands=["read -P 5 0 4M"], code=code)
        t.equal("not authorized" in server.errors(), code == 1, "what the server tells")
        server.stop()


@case
def plain_text_behind_starttls_is_not_taken_over(t):
    image(t)
    server = serve(t, "-e", "4", "--object", psk(keys(t), "server"), "--tls-creds", "tls0", "-f", "qcow2",
                   "a.qcow2")
    client = socket.socket(socket.AF_UNIX)
    client.connect(server.path)
    client.settimeout(30)
    client.recv(18, socket.MSG_WAITALL)
    option = lambda number, data=b"": struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data
    client.sendall(struct.pack(">I", 3))
    for number in (3, 7, 99):  # everything but STARTTLS needs TLS
        client.sendall(option(number))
        t.equal(struct.unpack(">QIII", client.recv(20, socket.MSG_WAITALL))[2], 0x80000005, "answer")
        client.recv(15, socket.MSG_WAITALL)
    client.sendall(option(5) + option(3))
    t.equal(client.recv(1), b"", "the connection")
    stalled = socket.socket(socket.AF_UNIX)
    stalled.connect(server.path)
    stalled.settimeout(30)
    stalled.recv(18, socket.MSG_WAITALL)
    stalled.sendall(struct.pack(">I", 3) + option(5))
    t.equal(struct.unpack(">QIII", stalled.recv(20, socket.MSG_WAITALL))[2], 1, "answer to STARTTLS")
    stalled.sendall(b"\x16\x03\x01")  # and no more of the handshake
    t.equal(stalled.recv(1), b"", "who stalls in the TLS handshake is cut off")
    t.equal(server.stop(), 0, "exit status")


@cases(objects=[["tls-creds-psk,id=tls0,endpoint=server"],
                ["tls-creds-psk,id=tls0,dir=/nonexistent,endpoint=server"],
                ["tls-creds-x509,id=tls0,dir=/nonexistent,endpoint=server"],
                ["tls-creds-psk,id=tls0,dir=psk,endpoint=client"],
                ["tls-creds-psk,id=tls0,dir=psk,endpoint=both"],
                ["tls-creds-psk,id=tls0,dir=psk,endpoint=server,username=x"],
                ["tls-creds-psk,id=other,dir=psk,endpoint=server"],
                ["throttle-group,id=tls0"]])
def bad_credentials_are_refused(t, objects):
    image(t)
    keys(t)
    words = [word for text in objects for word in ("--object", text)]
    refused = t.run(t.tools / "vise-nbd", *words, "--tls-creds", "tls0", "-k", t.path("s"), "a.qcow2", code=1)
    t.fails_clearly(refused)


@case
def a_certificate_whose_time_is_over_is_refused(t):
    image(t)
    folder = certificates(t)
    (folder / "server.info").write_text(TEMPLATES["server"] +
                                        'activation_date = "2001-01-01"\nexpiration_date = "2002-01-01"\n')
    t.run("certtool", "--generate-certificate", "--load-privkey", folder / "server-key.pem", "--template",
          folder / "server.info", "--outfile", folder / "server-cert.pem", "--load-ca-certificate",
          folder / "ca-cert.pem", "--load-ca-privkey", folder / "ca-key.pem")
    refused = t.run(t.tools / "vise-nbd", "--object", x509(folder, "server"), "--tls-creds", "tls0", "-k",
                    t.path("s"), "a.qcow2", code=1)
    t.fails_clearly(refused, "expired", "server-cert.pem")


main()
