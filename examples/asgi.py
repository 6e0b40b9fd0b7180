"""A web application that runs a fresh WebAssembly program for each request, within limits: `uvicorn examples.asgi:app`.

The words of the path are the program's arguments, the body of a request its standard input, its standard output the answer.
Nothing of one request is left for the next: each has a memory, a table and globals of its own. Code is compiled once. A
program that takes too long is stopped.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

import dl

PROGRAM = os.environ.get("ASGI_PROGRAM", "fixtures/wasi/unshared/main.wasm")
SECONDS = float(os.environ.get("ASGI_SECONDS", "2"))
LIMITS = dl.Limits(memory_pages=1024, threads=4)
AT_ONCE = 4
"""Programs that run at a time; other requests wait for their turn."""

_turns = anyio.Semaphore(AT_ONCE)

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def run(body: bytes, path: str) -> tuple[int, bytes]:
    """Run the program on a body; return the status and the answer."""
    answer: list[bytes] = []

    def make() -> dl.Linker:
        return dl.Linker(
            PROGRAM,
            args=("program", *path.strip("/").split("/")),
            stdin=body,
            stdout=answer.append,
            stderr=lambda _text: None,
            interrupts=True,
            limits=LIMITS,
        )

    try:
        async with dl.open_linker(make) as linker:
            with anyio.fail_after(SECONDS):
                code = await linker.run()
    except TimeoutError:
        return 504, b"the program took too long\n"
    except dl.DlError as error:
        return 500, f"{error}\n".encode()
    return (200 if code == 0 else 500), b"".join(answer)


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Serve a request; see the ASGI specification."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    async with _turns:
        status, answer = await run(body, scope["path"])
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]}
    )
    await send({"type": "http.response.body", "body": answer})
