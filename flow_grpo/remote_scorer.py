"""`remote:URL`: a scorer that runs elsewhere, behind scripts/serve_rewards.py; docs/remote-rewards.md has the protocol."""

import http.client
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from .remote.wire import bearer_token, decode_score, encode_batch
from .score import Score, check_images, to_uint8

logger = logging.getLogger(__name__)

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds between two tries; each time twice as long
RETRIED = {408, 429}  # and 5xx; any other 4xx would be the same the next time
MAX_REASON_BYTES = 64 * 2**10


class RemoteScorer:
    """Sends each batch to a reward server in one request, and goes on beside its caller.

    The images travel as 8-bit levels, as a file would hold them: the score is that of the rounded images. The answer is
    fp32, so that on 8-bit images a remote scorer gives what it gives at home, bit for bit.

    url: http or https, such as "http://10.0.0.5:8000". timeout: seconds for a request, its wait for other requests
    included. retries: after the first try, for what may pass (no connection, a timeout, 5xx): half a second after it,
    then twice as long each time up to 30, each with jitter; 8 bridge about a minute. num_connections: requests at a time.
    token_env: the environment variable with the bearer token, by default FLOW_GRPO_REWARD_TOKEN where that is set; the
    token itself is no option, since options are saved with the run. max_mib: the largest answer to accept.

    Calls raise ValueError for what the server refuses (4xx), with its reason; RuntimeError where it gives no score after
    all retries, or something that is no score.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 120.0,
        retries: int = 8,
        num_connections: int = 2,
        token_env: str | None = None,
        max_mib: float = 256.0,
    ):
        self._url, (self._connection_class, self._host, self._path) = url, _parse_url(url)
        if not timeout > 0 or not retries >= 0 or not num_connections >= 1 or not max_mib > 0:
            raise ValueError(
                f"timeout and max_mib must be above 0, retries 0 or more and num_connections 1 or more, got "
                f"{timeout=}, {max_mib=}, {retries=}, {num_connections=}"
            )
        self._timeout, self._retries, self._max_bytes = timeout, retries, int(max_mib * 2**20)
        self._headers = {"Content-Type": "application/octet-stream"}
        if token := bearer_token(token_env):
            self._headers["Authorization"] = f"Bearer {token}"
        self._slots = threading.Semaphore(num_connections)
        self._random = random.Random()  # its own: the run's is seeded

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        """Score images (B, 3, H, W), float in [0, 1]."""
        return self.submit(images, prompts, metadata)()

    def submit(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Callable[[], Score]:
        """Begin to score; the function returned waits for the Score. Raises ValueError for bad input at once."""
        check_images(images, prompts, metadata)
        request = encode_batch(to_uint8(images), prompts, metadata)
        future, device, batch_size = Future(), images.device, len(images)
        # daemon: an interrupted run does not wait for the network
        threading.Thread(target=self._resolve, args=(future, request, batch_size), daemon=True).start()
        return lambda: _to_device(future.result(), device)

    def _resolve(self, future: Future, request: bytes, batch_size: int) -> None:
        try:
            with self._slots:
                answer = self._answer(request)
            future.set_result(self._decoded(answer, batch_size))
        except Exception as error:  # whatever it is, the caller raises it
            future.set_exception(error)

    def _decoded(self, answer: bytearray, batch_size: int) -> Score:
        try:
            return decode_score(answer, batch_size)
        except ValueError as error:
            raise RuntimeError(f"{self._url} answered with something that is no score: {error}") from error

    def _answer(self, request: bytes) -> bytearray:
        """The body of a good answer, after as many tries as it takes."""
        for attempt in range(self._retries + 1):
            try:
                return self._try_once(request)
            except (_Unavailable, OSError, http.client.HTTPException) as error:
                last = error
            if attempt < self._retries:
                delay = min(FIRST_DELAY * 2**attempt, LONGEST_DELAY) * self._random.uniform(0.5, 1)
                delay = max(delay, getattr(last, "retry_after", 0.0))
                tries = f"{attempt + 1} of {self._retries + 1} tries"
                logger.warning("%s: %s; %s, the next in %.1f s", self._url, _describe(last), tries, delay)
                time.sleep(delay)
        raise RuntimeError(
            f"{self._url} gave no score in {self._retries + 1} tries, the last: {_describe(last)}; "
            "see whether the server runs, and what its log says"
        ) from last

    def _try_once(self, request: bytes) -> bytearray:
        deadline = time.monotonic() + self._timeout
        with closing(self._connection_class(self._host, timeout=self._timeout)) as connection:
            # a server that refuses early stops reading: its answer says why
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", self._path, request, self._headers)
            with connection.getresponse() as response:
                if response.status == 200:
                    if response.length is None and not response.chunked:  # nothing would show that it was cut short
                        raise http.client.HTTPException("the answer has no Content-Length")
                    return _read(response, self._max_bytes, deadline)
                reason = _reason(_read(response, MAX_REASON_BYTES, deadline, cut=True))
        if response.status >= 500 or response.status in RETRIED:
            raise _Unavailable(f"HTTP {response.status}: {reason}", _seconds(response.headers.get("Retry-After")))
        raise ValueError(f"{self._url} refused the batch: {reason} (HTTP {response.status})")


class _Unavailable(Exception):
    """An answer that may be another the next time. retry_after: seconds that the server asks for."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


def _parse_url(url: str) -> tuple[type[http.client.HTTPConnection], str, str]:
    """What connects, to "host:port", and the path to score at."""
    parts = urlsplit(url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    beyond_path = parts.username or parts.password or parts.query or parts.fragment
    if parts.scheme not in kinds or not parts.hostname or beyond_path or not (url.isascii() and url.isprintable()):
        raise ValueError(
            f"a reward server's URL must be http://HOST:PORT or https://HOST:PORT, got {url!r}; "
            "a token goes into the environment"
        )
    parts.port  # noqa: B018  raises ValueError where it is no port
    return kinds[parts.scheme], parts.netloc, parts.path.rstrip("/") + "/score"


def _read(response: http.client.HTTPResponse, limit: int, deadline: float, cut: bool = False) -> bytearray:
    """The body, at most `limit` bytes: more is cut off, or an error."""
    body = bytearray()
    while chunk := response.read1(min(2**20, limit + 1 - len(body))):
        body += chunk
        if time.monotonic() > deadline:
            raise TimeoutError("the answer took too long")
        if len(body) > limit:
            if cut:
                return body[:limit]
            raise RuntimeError(f"the answer is larger than {limit} bytes; raise max_mib, or send smaller batches")
    if response.length:
        raise http.client.IncompleteRead(bytes(body[:80]), response.length)
    return body


def _reason(body: bytearray) -> str:
    """What an answer other than 200 says: the server's JSON, or the beginning of a proxy's page."""
    text = body.decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads(text)["error"])
    return repr(text[:200])


def _seconds(retry_after: str | None) -> float:
    """Of a Retry-After header, at most LONGEST_DELAY; 0 without one, or where it gives a date."""
    return min(float(retry_after), LONGEST_DELAY) if retry_after and retry_after.isdecimal() else 0.0


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, _Unavailable) else f"{type(error).__name__}: {error}"


def _to_device(score: Score, device: torch.device) -> Score:
    return replace(
        score,
        reward=score.reward.to(device),
        reward_map=None if score.reward_map is None else score.reward_map.to(device),
        map_valid=score.map_valid.to(device),
        details={name: values.to(device) for name, values in score.details.items()},
        valid=score.valid.to(device),
    )
