"""A scorer behind HTTP: every request gets an answer, bounded in size, in time and in number.

docs/remote-rewards.md has the protocol; scripts/serve_rewards.py starts it.
"""

import hmac
import io
import json
import logging
import re
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn

from ..score import Score, Scorer
from .wire import DEFAULT_TOKEN_ENV, decode_batch, encode_score

logger = logging.getLogger(__name__)

METHODS = {"/score": "POST", "/health": "GET"}
HEAD_TIMEOUT = 10.0  # seconds for a request's line and headers
LINGER = 2.0  # seconds in which a client may still send what is no longer read
MORE_CONNECTIONS = 64  # than requests: those that only send their headers, or hear a refusal


@dataclass(frozen=True)
class Limits:
    """max_bytes and max_batch: of a request. max_requests: at a time. timeout: seconds for a body, and for an answer."""

    max_bytes: int = 256 * 2**20
    max_batch: int = 256
    max_requests: int = 64
    timeout: float = 60.0


class Refusal(Exception):
    """Answered with this HTTP status, this reason and these headers."""

    def __init__(self, status: int, reason: str, **headers: str):
        super().__init__(reason)
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


class RewardServer(ThreadingMixIn, TCPServer):
    """One scorer at one address, a thread a connection.

    Scorers with `submit` have several batches in hand at a time; the others score one after the other, so that memory does
    not grow with the number of clients. server_close waits for the requests in hand.
    """

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], scorer: Scorer, limits: Limits, token: str | None = None, device: str = "cpu"
    ):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.limits, self.token = limits, token
        self._scorer, self._device = scorer, device
        self._turn = threading.Lock()
        self._requests = threading.BoundedSemaphore(limits.max_requests)
        self._connections = threading.BoundedSemaphore(limits.max_requests + MORE_CONNECTIONS)
        super().__init__(address, RewardHandler)

    @contextmanager
    def slot(self):
        """One of max_requests; 503 where all are taken."""
        if not self._requests.acquire(blocking=False):
            raise Refusal(503, "too many requests at a time; try again", Retry_After="1")
        try:
            yield
        finally:
            self._requests.release()

    def score(self, message: bytearray) -> bytes:
        """The answer to a request's body. Raises Refusal: 400 for a malformed one, 422 for what the scorer refuses."""
        try:
            levels, prompts, metadata = decode_batch(message, self.limits.max_batch)
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        try:
            with self._turn:
                images = levels.contiguous().to(self._device).float().div_(255)  # (B, 3, H, W)
                submitted = hasattr(self._scorer, "submit")
                score = (self._scorer.submit if submitted else self._scorer)(images, prompts, metadata)
                del images
            score = score() if submitted else score
        except ValueError as error:
            raise Refusal(422, str(error)) from error
        except Exception as error:  # whatever a scorer raises
            logger.exception("the scorer failed")
            raise Refusal(500, f"the scorer failed: {type(error).__name__}: {error}") from error
        if not isinstance(score, Score) or len(score.reward) != len(levels):
            raise Refusal(500, f"the scorer gave no Score of {len(levels)} images, but {type(score).__name__}")
        return encode_score(score)

    def process_request(self, request, client_address):
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.settimeout(0)  # what fits the socket's buffer: nobody waits for this client
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        self.close_request(request)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def shutdown_request(self, request):
        """Close when the client has: with bytes unread, closing would reset the connection under the answer."""
        deadline = time.monotonic() + LINGER
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            request.settimeout(LINGER)
            while time.monotonic() < deadline and request.recv(65536):
                pass
        self.close_request(request)

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            logger.info("%s went away: %s", client_address[0], error)
        else:
            logger.exception("a request from %s failed", client_address[0])


class RewardHandler(BaseHTTPRequestHandler):
    """One request of one connection."""

    server: RewardServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "flow-grpo-rewards", ""
    command = path = requestline = request_version = ""  # until the request's line is read

    def setup(self):
        super().setup()
        self.rfile.close()
        self._incoming = _Incoming(self.connection, HEAD_TIMEOUT)
        self.rfile = io.BufferedReader(self._incoming)

    def handle(self):
        started, status = time.monotonic(), None
        try:
            self.handle_one_request()
        except Refusal as refusal:
            status = refusal.status
            # not the scorer's whole mind: some errors quote what they were given
            self._answer(status, _json({"error": str(refusal)[:1000]}), **refusal.headers)
        logger.info(
            *("%s %.20r %.80r: %s in %.3f s", self.client_address[0], self.command, self.path),
            *(status or "done", time.monotonic() - started),
        )

    def parse_request(self) -> bool:
        # False after an empty line alone: everything else that it refuses comes by send_error
        if not super().parse_request() or not self.request_version.startswith("HTTP/1."):
            raise Refusal(400, "the request must begin with METHOD PATH HTTP/1.1")
        return True

    def do_GET(self):
        self._check_route()
        self._answer(200, _json({"status": "ok"}))

    def do_POST(self):
        self._check_route()
        self._check_token()
        length = self._content_length()
        with self.server.slot():
            self._answer(200, self.server.score(self._body(length)), Content_Type="application/octet-stream")

    def _check_route(self):
        method = METHODS.get(self.path)
        if method is None:
            raise Refusal(404, f"nothing is here; {' and '.join(f'{m} {p}' for p, m in METHODS.items())} are")
        if method != self.command:
            raise Refusal(405, f"{self.path} takes {method}", Allow=method)

    def _check_token(self):
        token = self.server.token
        given = self.headers.get("Authorization", "").encode("latin-1", "replace")
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            reason = f"this server wants its bearer token; set {DEFAULT_TOKEN_ENV}, or the scorer's token_env"
            raise Refusal(401, reason, WWW_Authenticate="Bearer")

    def _content_length(self) -> int:
        """Checked before any of the body is read."""
        if "Transfer-Encoding" in self.headers:
            raise Refusal(411, "no Transfer-Encoding is understood; send the body whole, with its Content-Length")
        # one that a browser's form cannot send unasked
        if self.headers.get_content_type() != "application/octet-stream":
            raise Refusal(415, "the body must be application/octet-stream")
        lengths = self.headers.get_all("Content-Length", [])
        if not lengths:
            raise Refusal(411, "send the body's Content-Length")
        if len(lengths) > 1 or not re.fullmatch("[0-9]{1,18}", lengths[0]):
            raise Refusal(400, "Content-Length must be one whole number")
        length, limit = int(lengths[0]), self.server.limits.max_bytes
        if length > limit:
            raise Refusal(
                413, f"a request may take {limit} bytes, got {length}; send smaller batches, or raise --max-mib"
            )
        return length

    def _body(self, length: int) -> bytearray:
        self._incoming.deadline = time.monotonic() + self.server.limits.timeout
        # grows as the bytes come: a length alone takes no memory
        body = bytearray()
        while len(body) < length:
            chunk = self.rfile.read1(min(length - len(body), 2**20))
            if not chunk:
                raise Refusal(400, f"the body ended after {len(body)} of {length} bytes")
            body += chunk
        return body

    def _answer(self, status: int, body: bytes, **headers: str):
        self.connection.settimeout(self.server.limits.timeout)
        self.request_version = self.protocol_version  # to one of 0.9 the answer would have no status
        self.send_response(status)
        headers = {"Content_Type": "application/json"} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code, message=None, explain=None):
        """What http.server itself refuses: a line or headers that it cannot read, a method or version unknown to it."""
        code = {501: 405, 505: 400}.get(code, code)
        raise Refusal(code, f"the request cannot be read: {message or 'bad request'}")

    def log_request(self, code="-", size="-"):
        pass  # `handle` logs


class _Incoming(io.RawIOBase):
    """What a connection receives until a deadline: a client that sends byte by byte does not move it."""

    def __init__(self, connection: socket.socket, seconds: float):
        self._connection, self.deadline = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            self._connection.settimeout(max(self.deadline - time.monotonic(), 1e-3))
            return self._connection.recv_into(buffer)
        except TimeoutError:
            raise Refusal(408, "the request came too slowly") from None


def _json(value: dict) -> bytes:
    return json.dumps(value).encode()
