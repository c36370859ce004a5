"""The proxy of deploy/haproxy.cfg with a real HAProxy: whom it counts as one, when it reads certificates."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from services.launcher.credentials import make_credentials
from tests.processes import free_port

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CONFIG, SCRIPT = DEPLOY / "haproxy.cfg", DEPLOY / "proxy.sh"
HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
LIMIT_S = 60
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="Debian's package haproxy is not here")


def settings(credentials: Path, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "DEKAG_PORT": str(port),
        "DEKAG_GATEWAY_ADDRESS": f"127.0.0.1:{free_port()}",  # where nobody is
        "DEKAG_HTTPS_DIR": str(credentials / "proxy"),
        "DEKAG_TLS_DIR": str(credentials / "proxy"),
    }


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which ends with the test."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(LIMIT_S)


def eventually(holds: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert process.poll() is None, "HAProxy has ended"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def served(port: int) -> str:
    """The certificate that clients see; empty if there is no connection."""
    try:
        return ssl.get_server_certificate(("127.0.0.1", port), timeout=LIMIT_S)
    except OSError:
        return ""


def read(file: Path) -> str:
    return file.read_text().strip()


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    make_credentials(tmp_path)
    command = [str(HAPROXY), "-c", "-f", str(CONFIG)]
    checked = subprocess.run(
        command, env=settings(tmp_path, free_port()), capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "[WARNING]" not in checked.stderr


def test_addresses_of_one_network_are_counted_together(tmp_path: Path) -> None:
    """Whoever has one IPv6 address usually has all of its /64; an IPv4 address stays on its own."""
    (counted,) = re.findall(r"track-sc0 (\S+)", CONFIG.read_text())
    expression = counted.replace("src", "req.hdr(address)", 1)  # the addresses of this machine are few
    port = free_port()
    (file := tmp_path / "count.cfg").write_text(
        "defaults\n  mode http\n  timeout client 60s\nfrontend counts\n"
        f"  bind 127.0.0.1:{port}\n  http-request return status 200 hdr counted %[{expression}]\n"
    )

    def key(address: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
        connection.request("GET", "/", headers={"address": address})
        found = connection.getresponse().getheader("counted")
        assert found
        return found

    def listens() -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", port)) == 0

    with running([str(HAPROXY), "-db", "-f", str(file)], dict(os.environ), tmp_path / "log") as process:
        eventually(listens, process)
        assert key("2001:db8:0:1::1") == key("2001:db8:0:1:ffff:ffff:ffff:ffff")
        assert key("2001:db8:0:1::1") != key("2001:db8:0:2::1")
        assert key("192.0.2.1") != key("192.0.2.2")
        assert key("::ffff:192.0.2.1") == key("192.0.2.1")


def test_connections_of_an_address_are_limited(tmp_path: Path) -> None:
    make_credentials(tmp_path)
    port, tls = free_port(), ssl.create_default_context(cafile=tmp_path / "proxy" / "ca.crt")
    env = {**settings(tmp_path, port), "DEKAG_MAX_ADDRESS_CONNECTIONS": "2"}

    def connected(address: str) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=LIMIT_S, source_address=(address, 0), context=tls
        )
        connection.connect()
        return connection

    def status(connection: http.client.HTTPSConnection) -> int:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status

    with running([str(HAPROXY), "-db", "-f", str(CONFIG)], env, tmp_path / "log") as process:
        eventually(lambda: served(port) != "", process)
        kept = [connected("127.0.0.2") for _ in range(3)]
        assert status(kept[-1]) == 429
        assert status(connected("127.0.0.3")) == 503, "there is no gateway, and the limit is another's"
        for each in kept:
            each.close()


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    make_credentials(tmp_path / "first")
    make_credentials(tmp_path / "second")
    first, second = (read(tmp_path / name / "proxy" / "tls.crt") for name in ("first", "second"))
    port, used = free_port(), tmp_path / "first" / "proxy"
    command = ["sh", str(SCRIPT), str(HAPROXY), "-W", "-db", "-f", str(CONFIG)]
    log = tmp_path / "proxy.log"
    with running(command, settings(tmp_path / "first", port), log) as process:
        eventually(lambda: served(port).strip() == first, process)
        shutil.copy(tmp_path / "second" / "proxy" / "tls.key", used)  # which does not fit the certificate yet
        eventually(lambda: "private key" in log.read_text(), process)
        assert served(port).strip() == first, "HAProxy has refused the files and goes on"
        for name in ("tls.crt", "ca.crt"):
            shutil.copy(tmp_path / "second" / "proxy" / name, used)
        eventually(lambda: served(port).strip() == second, process)
        process.terminate()
        process.wait(LIMIT_S)
        assert served(port) == "", "HAProxy has ended with its script"


def test_the_script_ends_as_haproxy_does(tmp_path: Path) -> None:
    env = settings(tmp_path, free_port())
    for status in (0, 3):
        ended = subprocess.run(["sh", str(SCRIPT), "sh", "-c", f"exit {status}"], env=env, check=False)
        assert ended.returncode == status
