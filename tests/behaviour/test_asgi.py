"""`examples/asgi.py` under a real server: a fresh program for each request, within limits, with a load on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.paths import ROOT

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.timeout(120)


def ask(address: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Return status and body of an answer."""
    try:
        with urllib.request.urlopen(f"{address}{path}", data=body or None, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture(name="address")
def _address() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        "-m",
        "uvicorn",
        "--app-dir",
        "examples",
        "--port",
        str(port),
        "--log-level",
        "warning",
        "asgi:app",
    ]
    server = subprocess.Popen(
        [sys.executable, "-X", "dev", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ASGI_SECONDS": "3"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        _, errors = server.communicate(timeout=30)
    assert errors == ""


def test_each_request_has_a_program_of_its_own(address: str) -> None:
    """Eight clients at once get back what they sent, counted; programs that fail or take too long harm nobody."""
    with ThreadPoolExecutor(8) as clients:
        slow = clients.submit(ask, address, "/sleep/60000")
        failing = clients.submit(ask, address, "/exit/3")
        bodies = [f"request {number}\n".encode() * (1 + number % 5) for number in range(40)]
        answers = list(clients.map(lambda body: ask(address, "/echo", body), bodies))

        numbered = [[b"%d: %s" % item for item in enumerate(body.splitlines(True), 1)] for body in bodies]
        assert answers == [(200, b"".join(lines)) for lines in numbered]
        assert slow.result(60) == (504, b"the program took too long\n")
        assert failing.result(60)[0] == 500
