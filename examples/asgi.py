"""A web application that runs a fresh WebAssembly program for each request, within limits: `uvicorn examples.asgi:app`.

The words of the path are the program's arguments, the body of a request its standard input, its standard output the answer.
Nothing of one request is left for the next: each has a memory, a table and globals of its own. Programs are linked before
requests come, code is compiled once, and a program that takes too long is stopped. A client that goes away stops its program
where the server cancels its task.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import dl

SPEC = dl.Spec(
    main=os.environ.get("ASGI_PROGRAM", "fixtures/wasi/unshared/main.wasm"),
    limits=dl.Limits(memory_pages=1024, threads=4),
)
SECONDS = float(os.environ.get("ASGI_SECONDS", "2"))
MOST_BODY = 1 << 20
AT_ONCE = int(os.environ.get("ASGI_AT_ONCE", "4"))
"""Programs that run at a time. Other requests wait for their turn, up to `MOST_WAITING` of them."""
MOST_WAITING = 1000
READY = int(os.environ.get("ASGI_READY", "4"))
"""Programs that wait for requests."""

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Application:
    """The application: a pool that lives as long as the server."""

    def __init__(self) -> None:
        self._pool: dl.ProgramPool | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve a request, or the server's start and end; see the ASGI specification."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            status, answer = await self._answer(scope["path"], receive)
            head = {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", b"text/plain")],
            }
            await send(head)
            await send({"type": "http.response.body", "body": answer})

    async def _live(self, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        with dl.ProgramPool(
            SPEC, at_once=AT_ONCE, waiting=MOST_WAITING, ready=READY, timeout=SECONDS
        ) as pool:
            self._pool = pool
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, path: str, receive: Receive) -> tuple[int, bytes]:
        """Run the program on a body; return the status and the answer."""
        assert self._pool is not None
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MOST_BODY:
                return 413, b"the body is too long\n"
        try:
            outcome = await self._pool.run_async(args=("program", *path.strip("/").split("/")), stdin=body)
        except dl.GuestTimeoutError:
            return 504, b"the program took too long\n"
        except dl.PoolFullError:
            return 503, b"too many requests\n"
        except dl.DlError as error:
            return 500, f"{error}\n".encode()
        return (200 if outcome.code == 0 else 500), outcome.stdout


app = Application()
