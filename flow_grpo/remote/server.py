"""A scorer behind HTTP. Every request gets an answer; size, time and number of requests are bounded.

Starlette handles the routes (`application`) and uvicorn the connections. This file adds the bounds that uvicorn lacks.
docs/remote-rewards.md has the protocol; scripts/serve_rewards.py starts it.
"""

import signal
import socket
from http import HTTPStatus

import anyio
import h11
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..score import Scorer
from .application import Limits, application

HEAD_TIMEOUT = 10.0  # seconds for a request's line and headers
MAX_HEAD_BYTES = 8 * 2**10  # a head that arrives in one piece may be twice as long
LINGER = 2.0  # seconds during which a client may still send bytes that nobody reads
MORE_CONNECTIONS = 64  # connections beyond max_requests: they still send headers, or receive a refusal


class RewardServer(uvicorn.Server):
    """One scorer at one address. `run` serves until `should_exit` is set; then it answers its open requests and ends.

    A scorer with `submit` works on several batches at a time; any other scores one after the other. Requests are
    read in turn, two at a time, so memory does not grow with the number of clients.
    address: host and port; port 0 takes a free port, which `port` then tells.
    """

    def __init__(
        self, address: tuple[str, int], scorer: Scorer, limits: Limits, token: str | None = None, device: str = "cpu"
    ):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = socket.create_server(address, family=family, backlog=128)
        self.port = self._listener.getsockname()[1]
        config = uvicorn.Config(
            _Lingering(application(scorer, limits, token, device)),
            http=lambda **options: _Connection(limits, **options),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            headers=[("Connection", "close")],  # a connection serves one request
            **{"loop": "asyncio", "ws": "none", "lifespan": "off", "log_config": None},
            **{"proxy_headers": False, "server_header": False, "date_header": False},
        )
        super().__init__(config)

    def run(self) -> None:
        super().run([self._listener])

    def handle_exit(self, number, frame):
        print(f"{signal.Signals(number).name}: finishing what is in hand; once more to stop at once", flush=True)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        self.should_exit = True


class _Connection(H11Protocol):
    """uvicorn's connection, with a deadline for a request's head, one for sending the answer, and a limit to their number."""

    def __init__(self, limits: Limits, **options):
        super().__init__(**options)
        self._limits, self._timer, self._refused = limits, None, False

    def connection_made(self, transport):
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that an answer counts as sent when the kernel has all of it
        if len(self.connections) > self._limits.max_requests + MORE_CONNECTIONS:
            self._refuse(503, "too many connections; try again")
        else:
            self._after(HEAD_TIMEOUT, self._refuse, 408, "the request came too slowly")

    def data_received(self, data):
        # in pieces: the parser limits what it buffers, but not what arrives at once
        while self.cycle is None and not self._refused and data:
            super().data_received(data[:MAX_HEAD_BYTES])
            data = data[MAX_HEAD_BYTES:]
            if self.cycle is not None:
                self._timer.cancel()
        if self.cycle is not None and data:
            super().data_received(data)

    def eof_received(self):
        """The client has sent everything, or is gone. Returns True, which keeps the connection open for the answer."""
        if self._refused:
            return False
        if self.cycle is None:
            self._refuse(400, "the request ended before its headers did")
        else:
            self._end_body()
        return True

    def connection_lost(self, error):
        self._timer.cancel()
        super().connection_lost(error)

    def pause_writing(self):
        self._after(self._limits.timeout, self.transport.abort)
        super().pause_writing()

    def resume_writing(self):
        self._timer.cancel()
        super().resume_writing()

    def send_400_response(self, msg):
        """Answer a request that the parser refuses. uvicorn calls this while it handles the parser's error."""
        if self.cycle is not None:  # in the body: the application answers
            self._end_body()
            return
        try:
            raise
        except h11.RemoteProtocolError as error:
            # h11 hints 501 for an unknown encoding, which is the client's error, too
            self._refuse(min(error.error_status_hint, 431), f"the request cannot be read: {error}")

    def _end_body(self):
        self.cycle.more_body = False
        self.cycle.message_event.set()

    def _after(self, seconds, function, *arguments):
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, function, *arguments)

    def _refuse(self, status: int, reason: str):
        """Answer before there is a complete request. Close when the client has closed; `_Lingering` says why."""
        self._refused = True
        answer = JSONResponse({"error": reason}, status, {"Connection": "close"})
        lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
        lines += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", answer.body]))
        self.transport.write_eof()
        self._after(LINGER, self.transport.abort)


class _Lingering:
    """Closes a connection only when the client has the answer and has sent everything.

    Closing with unread bytes would reset the connection before the client has read the answer.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        more = True

        async def noting_receive():
            nonlocal more
            message = await receive()
            more = message.get("more_body", False)
            return message

        async def lingering_send(message):
            if message["type"] == "http.response.body" and not message.get("more_body"):
                await send(message | {"more_body": True})
                with anyio.move_on_after(LINGER):
                    while more:
                        await noting_receive()
                message = message | {"body": b""}  # waits until the last one has left
            await send(message)

        await self._app(scope, noting_receive, lingering_send)
