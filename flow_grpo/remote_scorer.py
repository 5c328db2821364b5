"""`remote:URL`: a scorer that runs elsewhere, behind scripts/serve_rewards.py; docs/remote-rewards.md has the protocol."""

import asyncio
import json
import logging
import math
import random
import ssl
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from .option_types import checked_options
from .score import PromptErrors, Score, check_images, to_uint8

try:
    import httpx
    import tenacity

    from .remote.wire import bearer_token, decode_faults, decode_score, encode_batch, encode_prompts
except ImportError as error:
    raise ImportError('a "remote:" scorer needs its extra: pip install "flow-grpo-maps[remote]"') from error

logger = logging.getLogger(__name__)

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds between two tries; the wait doubles each time
RETRIED = {408, 429}  # 5xx as well; any other 4xx would fail again
MAX_REASON_BYTES = 64 * 2**10
PROMPTS_PER_CHECK = 100  # of the longest that a server takes, so many fit into a request


class RemoteScorer:
    """Sends each batch to a reward server in one request, in a thread of its own.

    The images are sent as 8-bit levels, so the score is that of the rounded images. The answer is fp32. On 8-bit images a
    remote scorer therefore gives the same bits as the same scorer in this process.

    url: http or https, such as "http://10.0.0.5:8000".
    timeout: seconds for one request, from the connection to the last byte of the answer. This includes the time that the
        request waits in the server for other requests.
    retries: number of tries after the first one, for failures that may pass (no connection, a timeout, 408, 429, 5xx). The
        first wait is half a second, and each wait is twice the one before, up to 30 seconds, with jitter. 8 retries bridge
        about a minute.
    num_connections: number of requests at the same time.
    token_env: the environment variable that holds the bearer token. None takes FLOW_GRPO_REWARD_TOKEN, if that is set. The
        token itself is not an option, because options are saved with the run.
    max_mib: size of the largest answer to accept, in MiB.

    A call raises ValueError with the server's reason if the server refuses the batch (4xx). It raises RuntimeError if the
    server gives no score after all retries, or an answer that is not a score.
    """

    # no effect on any score: a resumed run may change them
    OPTIONS_WITHOUT_EFFECT = ("timeout", "retries", "num_connections", "token_env", "max_mib")

    @checked_options
    def __init__(
        self,
        url: str,
        timeout: float = 120.0,
        retries: int = 8,
        num_connections: int = 2,
        token_env: str | None = None,
        max_mib: float = 256.0,
    ):
        self._url, self._base = url, _base(url)
        if not timeout > 0 or not retries >= 0 or not num_connections >= 1 or not 0 < max_mib < math.inf:
            raise ValueError(
                f"timeout and max_mib must be above 0, max_mib finite, retries 0 or more and num_connections 1 or more, got "
                f"{timeout=}, {max_mib=}, {retries=}, {num_connections=}"
            )
        self._timeout, self._retries, self._max_bytes = timeout, retries, int(max_mib * 2**20)
        headers = {"Content-Type": "application/octet-stream", "Accept-Encoding": "identity"}
        if token := bearer_token(token_env):
            headers["Authorization"] = f"Bearer {token}"
        self._random = random.Random()  # a generator of its own: the run's is seeded
        self._slots = asyncio.Semaphore(num_connections)
        # no timeout here: httpx's start again with each byte, and ours is for the whole request
        self._client = httpx.AsyncClient(
            headers=headers, timeout=None, verify=ssl.create_default_context(), trust_env=False, http2=False
        )
        self._loop = asyncio.new_event_loop()
        # daemon: an interrupted run does not wait for the network
        threading.Thread(target=_run, args=(self._loop,), daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop).atexit = False

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        """Score images (B, 3, H, W), float in [0, 1]."""
        return self.submit(images, prompts, metadata).result()

    def submit(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Future[Score]:
        """Begin to score. The images are copied before this returns. Raises ValueError for bad input at once."""
        check_images(images, prompts, metadata)
        request = encode_batch(to_uint8(images), prompts, metadata)
        return asyncio.run_coroutine_threadsafe(self._score(request, len(images), images.device), self._loop)

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Ask the server. Raises PromptErrors with every prompt that its scorer cannot score, ValueError if none answers.

        A server of an earlier version cannot be asked; it refuses such a prompt when it is to be scored.
        """
        faults = {}
        for first in range(0, len(prompts), PROMPTS_PER_CHECK):
            part = slice(first, first + PROMPTS_PER_CHECK)
            request = encode_prompts(prompts[part], metadata[part] if metadata else None)
            asking = self._exchanged("/check", request, partial(decode_faults, number=len(prompts[part])))
            try:
                found = asyncio.run_coroutine_threadsafe(asking, self._loop).result()
            except _Refused as error:
                if error.status not in (404, 405):
                    raise
                logger.warning("%s cannot check prompts before the run (HTTP %d); update it", self._url, error.status)
                return
            except _Unanswered as error:
                raise ValueError(str(error)) from error
            faults |= {first + place: fault for place, fault in found.items()}
        if faults:
            raise PromptErrors(faults, len(prompts))

    async def _score(self, request: bytes, batch_size: int, device: torch.device) -> Score:
        return _to_device(
            await self._exchanged("/score", request, partial(decode_score, batch_size=batch_size)), device
        )

    async def _exchanged(self, path: str, request: bytes, decode: Callable[[bytes], Any]) -> Any:
        """The decoded answer to a request. Raises RuntimeError if it cannot be decoded."""
        async with self._slots:
            answer = await self._answer(path, request)
        try:
            return decode(answer)
        except ValueError as error:
            raise RuntimeError(f"{self._url} answered with something that is no {path[1:]}: {error}") from error

    async def _answer(self, path: str, request: bytes) -> bytes:
        """The body of a good answer. Tries again, up to the number of retries."""
        tries = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self._retries + 1),
            wait=self._delay,
            retry=tenacity.retry_if_exception_type((_Unavailable, httpx.TransportError, asyncio.TimeoutError)),
            before_sleep=self._tell,
        )
        try:
            return await tries(self._try_once, path, request)
        except tenacity.RetryError as failure:
            last = failure.last_attempt.exception()
            raise _Unanswered(
                f"{self._url} gave no {path[1:]} in {self._retries + 1} tries, the last: {self._describe(last)}; "
                "see whether the server runs, and what its log says"
            ) from last

    async def _try_once(self, path: str, request: bytes) -> bytes:
        return await asyncio.wait_for(self._exchange(path, request), self._timeout)

    async def _exchange(self, path: str, request: bytes) -> bytes:
        async with self._client.stream("POST", self._base + path, content=request) as response:
            if response.status_code == 200:
                if not {"content-length", "transfer-encoding"} & response.headers.keys():
                    raise _Unavailable("the answer has no Content-Length: nothing would show that it was cut short")
                body = await _read(response, self._max_bytes)
                if len(body) > self._max_bytes:
                    reason = f"the answer is larger than {self._max_bytes} bytes"
                    raise RuntimeError(f"{reason}; raise max_mib, or send smaller batches")
                return body
            reason = _reason(await _read(response, MAX_REASON_BYTES))
        if response.status_code >= 500 or response.status_code in RETRIED:
            raise _Unavailable(f"HTTP {response.status_code}: {reason}", response.headers.get("Retry-After", ""))
        raise _Refused(f"{self._url} refused the batch: {reason} (HTTP {response.status_code})", response.status_code)

    def _delay(self, state: tenacity.RetryCallState) -> float:
        """Seconds until the next try: our own delay, or the server's Retry-After if that is longer."""
        delay = min(FIRST_DELAY * 2 ** (state.attempt_number - 1), LONGEST_DELAY) * self._random.uniform(0.5, 1)
        return max(delay, getattr(state.outcome.exception(), "retry_after", 0.0))

    def _tell(self, state: tenacity.RetryCallState) -> None:
        what, delay = self._describe(state.outcome.exception()), state.next_action.sleep
        tries = f"{state.attempt_number} of {self._retries + 1} tries"
        logger.warning("%s: %s; %s, the next in %.1f s", self._url, what, tries, delay)

    def _describe(self, error: BaseException) -> str:
        if isinstance(error, asyncio.TimeoutError):
            return f"no answer within {self._timeout:g} s"
        return str(error) if isinstance(error, _Unavailable) else f"{type(error).__name__}: {error}"


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop until the scorer is deleted, which stops it."""
    loop.run_forever()
    loop.close()


class _Refused(ValueError):
    """Another try would be refused again. status: the answer's."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class _Unanswered(RuntimeError):
    """No try brought an answer."""


class _Unavailable(Exception):
    """A failure that may pass, so that another try makes sense. retry_after: the server's Retry-After header, or ""."""

    def __init__(self, message: str, retry_after: str = ""):
        super().__init__(message)
        self.retry_after = min(float(retry_after), LONGEST_DELAY) if retry_after.isdecimal() else 0.0


def _base(url: str) -> str:
    """The URL without a slash at its end. Raises ValueError if `url` is not a server's URL."""
    parts = urlsplit(url)
    beyond_path = parts.username or parts.password or parts.query or parts.fragment
    named = parts.scheme in ("http", "https") and parts.hostname
    if not named or beyond_path or not (url.isascii() and url.isprintable()):
        raise ValueError(
            f"a reward server's URL must be http://HOST:PORT or https://HOST:PORT, got {url!r}; "
            "a token goes into the environment"
        )
    parts.port  # noqa: B018  raises ValueError for a port that is not a number
    return url.rstrip("/")


async def _read(response: httpx.Response, limit: int) -> bytes:
    """The body. Reading stops once it is longer than `limit` bytes."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            break
    return bytes(body)


def _reason(body: bytes) -> str:
    """The reason in an answer that is not 200: the error in the server's JSON, or the start of a proxy's page."""
    text = body.decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads(text)["error"])
    return repr(text[:200])


def _to_device(score: Score, device: torch.device) -> Score:
    return replace(
        score,
        reward=score.reward.to(device),
        reward_map=None if score.reward_map is None else score.reward_map.to(device),
        map_valid=score.map_valid.to(device),
        details={name: values.to(device) for name, values in score.details.items()},
        valid=score.valid.to(device),
    )
