"""The routes of a reward server: what it answers to each request.

`server` adds the bounds of a connection; docs/remote-rewards.md has the protocol.
"""

import asyncio
import hmac
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..score import PromptErrors, Score, Scorer
from .wire import DEFAULT_TOKEN_ENV, decode_batch, decode_prompts, encode_faults, encode_score, length_faults

logger = logging.getLogger(__name__)

SCORE, CHECK = "/score", "/check"
MAX_REASON = 1000  # characters of a reason: some errors quote their whole input
AT_ONCE = 2  # requests in memory: one is scored while another arrives or its answer leaves


@dataclass(frozen=True)
class Limits:
    """max_bytes, max_batch: per request. max_requests: at the same time. timeout: seconds for a body, and for an answer."""

    max_bytes: int = 256 * 2**20
    max_batch: int = 256
    max_requests: int = 64
    timeout: float = 60.0


class _Scoring:
    """`POST /score` and `POST /check`, as an application of its own. A request keeps its turn until its answer has been sent."""

    def __init__(self, scorer: Scorer, limits: Limits, token: str | None, device: str):
        self._scorer, self._limits, self._token, self._device = scorer, limits, token, device
        # one thread also has only one heap; each of several would keep the memory of its largest batch
        self._threads = ThreadPoolExecutor(AT_ONCE if hasattr(scorer, "submit") else 1)
        self._in_hand = 0
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, answering = Request(scope, receive), {SCORE: self._score, CHECK: self._check}[scope["path"]]
        self._check_token(request)
        length = self._content_length(request)
        with self._slot():
            async with self._at_once:
                body = await self._body(request, length)
                answer = await asyncio.get_running_loop().run_in_executor(self._threads, answering, body)
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
        """The Score of a request's body."""
        submit = getattr(self._scorer, "submit", None)
        with _failing_with(400):
            levels, prompts, metadata = decode_batch(message, self._limits.max_batch)
        images = levels.contiguous().to(self._device).float().div_(255)  # (B, 3, H, W)
        del levels
        with _failing_with(422):
            score = (submit or self._scorer)(images, prompts, metadata)
            del images
            if submit:
                score = score.result()
        if not isinstance(score, Score) or len(score.reward) != len(prompts):
            raise HTTPException(500, f"the scorer gave no Score of {len(prompts)} images, but {type(score).__name__}")
        return encode_score(score)

    def _check(self, message: bytes) -> bytes:
        """What is wrong with the prompts of a request's body. A scorer without `check_prompts` finds nothing."""
        with _failing_with(400):
            prompts, metadata = decode_prompts(message)
        faults = length_faults(prompts, metadata)
        with _failing_with(422):
            try:
                if hasattr(self._scorer, "check_prompts"):
                    self._scorer.check_prompts(prompts, metadata)
            except PromptErrors as error:
                faults = {place: fault[:MAX_REASON] for place, fault in error.faults.items()} | faults
        return encode_faults(faults, len(prompts))


@contextmanager
def _failing_with(status: int):
    """Answer a ValueError with this status: 400 for a malformed body, 422 for what the scorer refuses. Another error is 500."""
    try:
        yield
    except ValueError as error:
        raise HTTPException(status, str(error)) from error
    except Exception as error:  # a scorer may raise anything
        logger.exception("the scorer failed")
        raise HTTPException(500, f"the scorer failed: {type(error).__name__}: {error}") from error


def application(scorer: Scorer, limits: Limits, token: str | None, device: str) -> Starlette:
    """The scorer's routes: /score, /check and /health."""
    scoring = _Scoring(scorer, limits, token, device)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def refusal(request: Request, error: HTTPException) -> Response:
        reasons = {404: "nothing is here; POST /score, POST /check and GET /health are"}
        reasons[405] = "POST /score, POST /check, GET /health"
        reason = reasons.get(error.status_code, error.detail[:MAX_REASON])
        return JSONResponse({"error": reason}, error.status_code, error.headers)

    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response()  # the client is gone

    app = Starlette(
        routes=[*(Route(path, scoring, methods=["POST"]) for path in (SCORE, CHECK)), Route("/health", health)],
        exception_handlers={HTTPException: refusal, ClientDisconnect: gone},
    )
    app.router.redirect_slashes = False
    return app
