"""A scorer behind HTTP. Every request gets an answer; size, time and number of requests are bounded.

Starlette handles the routes and uvicorn the connections. This file adds the bounds that both lack.
docs/remote-rewards.md has the protocol; scripts/serve_rewards.py starts it.
"""

import asyncio
import hmac
import logging
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

import anyio
import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..score import Score, Scorer
from .wire import DEFAULT_TOKEN_ENV, decode_batch, encode_score

logger = logging.getLogger(__name__)

HEAD_TIMEOUT = 10.0  # seconds for a request's line and headers
MAX_HEAD_BYTES = 8 * 2**10  # a head that arrives in one piece may be twice as long
LINGER = 2.0  # seconds during which a client may still send bytes that nobody reads
MORE_CONNECTIONS = 64  # connections beyond max_requests: they still send headers, or receive a refusal
AT_ONCE = 2  # requests in memory: one is scored while another arrives or its answer leaves


@dataclass(frozen=True)
class Limits:
    """max_bytes, max_batch: per request. max_requests: at the same time. timeout: seconds for a body, and for an answer."""

    max_bytes: int = 256 * 2**20
    max_batch: int = 256
    max_requests: int = 64
    timeout: float = 60.0


class RewardServer(uvicorn.Server):
    """One scorer at one address. `run` serves until `should_exit` is set; then it answers its open requests and ends.

    A scorer with `submit` works on several batches at a time; any other scores one after the other. Requests are
    read in turn, at most AT_ONCE at a time, so memory does not grow with the number of clients.
    address: host and port; port 0 takes a free port, which `port` then tells.
    """

    def __init__(
        self, address: tuple[str, int], scorer: Scorer, limits: Limits, token: str | None = None, device: str = "cpu"
    ):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = socket.create_server(address, family=family, backlog=128)
        self.port = self._listener.getsockname()[1]
        config = uvicorn.Config(
            _Lingering(_routes(_Scoring(scorer, limits, token, device))),
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


class _Scoring:
    """`POST /score`, as an application of its own. A request keeps its turn until its answer has been sent."""

    def __init__(self, scorer: Scorer, limits: Limits, token: str | None, device: str):
        self._scorer, self._limits, self._token, self._device = scorer, limits, token, device
        # one thread also has only one heap; each of several would keep the memory of its largest batch
        self._threads = ThreadPoolExecutor(AT_ONCE if hasattr(scorer, "submit") else 1)
        self._in_hand = 0
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self._check_token(request)
        length = self._content_length(request)
        with self._slot():
            async with self._at_once:
                body = await self._body(request, length)
                answer = await asyncio.get_running_loop().run_in_executor(self._threads, self._score, body)
                del body
                await Response(answer, media_type="application/octet-stream")(scope, receive, send)

    def _check_token(self, request: Request) -> None:
        given = request.headers.get("Authorization", "").encode("latin-1")
        if self._token is not None and not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            reason = f"this server wants its bearer token; set {DEFAULT_TOKEN_ENV}, or the scorer's token_env"
            raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})

    def _content_length(self, request: Request) -> int:
        """The body's length, checked before the body is read. h11 has already refused a length that is not a number."""
        if "Content-Length" not in request.headers or "Transfer-Encoding" in request.headers:
            raise HTTPException(411, "send the body whole, with its Content-Length")
        # a browser's form cannot send this type, so a web page cannot send requests by a form
        if request.headers.get("Content-Type") != "application/octet-stream":
            raise HTTPException(415, "the body must be application/octet-stream")
        length, limit = int(request.headers["Content-Length"]), self._limits.max_bytes
        if length > limit:
            reason = f"a request may take {limit} bytes, got {length}; send smaller batches, or raise --max-mib"
            raise HTTPException(413, reason)
        return length

    @contextmanager
    def _slot(self):
        """Take one of max_requests slots; answer 503 if all are taken."""
        if self._in_hand == self._limits.max_requests:
            raise HTTPException(503, "too many requests at a time; try again", {"Retry-After": "1"})
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1

    async def _body(self, request: Request, length: int) -> bytes:
        try:
            with anyio.fail_after(self._limits.timeout):
                body = b"".join([chunk async for chunk in request.stream()])
        except TimeoutError:
            raise HTTPException(408, "the request's body came too slowly") from None
        if len(body) < length:
            raise HTTPException(400, f"the body ended after {len(body)} of {length} bytes")
        return body

    def _score(self, message: bytes) -> bytes:
        """The answer to a request's body: 400 if it is malformed, 422 if the scorer refuses it, 500 if the scorer fails."""
        submit = getattr(self._scorer, "submit", None)
        try:
            levels, prompts, metadata = decode_batch(message, self._limits.max_batch)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        images = levels.contiguous().to(self._device).float().div_(255)  # (B, 3, H, W)
        del levels
        try:
            score = (submit or self._scorer)(images, prompts, metadata)
            del images
            if submit:
                score = score.result()
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except Exception as error:  # a scorer may raise anything
            logger.exception("the scorer failed")
            raise HTTPException(500, f"the scorer failed: {type(error).__name__}: {error}") from error
        if not isinstance(score, Score) or len(score.reward) != len(prompts):
            raise HTTPException(500, f"the scorer gave no Score of {len(prompts)} images, but {type(score).__name__}")
        return encode_score(score)


def _routes(scoring: ASGIApp) -> Starlette:
    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def refusal(request: Request, error: HTTPException) -> Response:
        reasons = {404: "nothing is here; POST /score and GET /health are", 405: "POST /score, GET /health"}
        # cut the message: some errors quote their whole input
        reason = reasons.get(error.status_code, error.detail[:1000])
        return JSONResponse({"error": reason}, error.status_code, error.headers)

    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response()  # the client is gone

    app = Starlette(
        routes=[Route("/score", scoring, methods=["POST"]), Route("/health", health)],
        exception_handlers={HTTPException: refusal, ClientDisconnect: gone},
    )
    app.router.redirect_slashes = False
    return app
