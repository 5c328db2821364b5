"""What a reward server does with each request, over real sockets."""

import json
import logging
import socket
import threading
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
import torch

from flow_grpo.remote import server as reward_server
from flow_grpo.remote.wire import decode_faults, decode_score, encode_batch, encode_prompts, pack
from tests.hostile_requests import BODY, IMAGES, PROMPTS, TOKEN, exchange, request
from tests.moody_scorer import MoodyPool, MoodyScorer
from tests.serving import served
from tests.waiting import wait_until

LEVELS = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def server():
    with served(MoodyScorer(), TOKEN, max_bytes=2**20, max_batch=32) as server:
        yield server


def mood(*prompts):
    """A good request with these prompts, each an image."""
    return request(encode_batch(IMAGES[: len(prompts)], prompts, None))


def reason(answer):
    return json.loads(answer[2])["error"]


def test_good_request_is_scored(server):
    status, headers, body = exchange(server.port, request())
    assert status == 200 and headers["content-type"] == "application/octet-stream"
    score = decode_score(bytearray(body), 4)
    here = MoodyScorer()(LEVELS.float() / 255, PROMPTS, [{"tag": 0}] * 4)
    assert torch.equal(score.reward, here.reward) and torch.equal(score.reward_map, here.reward_map)
    assert score.details["num_entries"].tolist() == [1, 1, 1, 1]


def test_health_needs_no_token(server):
    assert exchange(server.port, request(b"", "GET /health HTTP/1.1", Authorization=None))[::2] == (
        200,
        b'{"status":"ok"}',
    )


@pytest.mark.parametrize(
    ("data", "status", "what"),
    [
        (request(line="POST /scores HTTP/1.1"), 404, "POST /score"),
        (request(line="GET /score HTTP/1.1"), 405, "POST /score"),
        (request(line="GET /check HTTP/1.1"), 405, "POST /check"),
        (request(line="POST /check HTTP/1.1", Authorization=None), 401, "FLOW_GRPO_REWARD_TOKEN"),
        (request(line="POST /check HTTP/1.1"), 400, "arrays may have"),
        (request(pack({}, {"prompts": "[1]"}), "POST /check HTTP/1.1"), 400, "prompts must be a list of str"),
        (request(line="DELETE /score HTTP/1.1"), 405, "POST /score"),
        (request(Authorization=None), 401, "FLOW_GRPO_REWARD_TOKEN"),
        (request(Authorization=f"Bearer {TOKEN[:-1]}"), 401, "bearer token"),
        (request(Transfer_Encoding="chunked"), 411, "Content-Length"),
        (request(Content_Length=None), 411, "Content-Length"),
        (request(Content_Length="-1"), 400, "bad Content-Length"),
        (request(Content_Type="text/plain"), 415, "octet-stream"),
        (request(encode_batch(np.zeros((33, 1, 1, 3), np.uint8), ["x"] * 33, None)), 400, "may hold 32 images, got 33"),
        (request(encode_batch(IMAGES, PROMPTS[:3], None)), 400, "3 for 4 images"),
        (request(Content_Length=str(len(BODY) + 1)), 400, f"ended after {len(BODY)} of {len(BODY) + 1} bytes"),
        (mood("refuse"), 422, "quote one"),
        (b"\r\n\r\n", 400, "cannot be read"),
        (request()[:60], 400, "ended before its headers"),
        (request(X_Long="y" * 20_000), 431, "cannot be read"),
        (request(line="POST /score HTTP/x.y"), 400, "cannot be read"),
    ],
)
def test_refusals_say_why(server, data, status, what):
    answer = exchange(server.port, data)
    assert answer[0] == status and what in reason(answer)


def test_too_large_a_body_is_refused_before_it_is_read(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request(b"", Content_Length=str(2**20 + 1)))  # and waits, as a client may
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")
    answer = exchange(server.port, request(bytes(2**22)))  # and one that sends on all the same hears of it too
    assert answer[0] == 413 and "1048576 bytes, got 4194304" in reason(answer)


def test_a_scorer_without_a_check_finds_no_fault_in_prompts(server):
    status, _, body = exchange(server.port, request(encode_prompts(PROMPTS, None), "POST /check HTTP/1.1"))
    assert status == 200 and decode_faults(body, len(PROMPTS)) == {}


@pytest.mark.parametrize(("what", "text"), [("raise", "OSError: no mood for pictures"), ("nonsense", "no Score")])
def test_scorer_that_fails_is_a_500_without_its_stack_trace(server, what, text, caplog):
    with caplog.at_level(logging.ERROR):
        answer = exchange(server.port, mood("fine", what))
    assert answer[0] == 500 and text in reason(answer) and b"Traceback" not in answer[2]
    ours = [record for record in caplog.records if record.name.startswith("flow_grpo")]
    assert any(record.exc_info for record in ours) == (what == "raise")
    assert exchange(server.port, request())[0] == 200


def test_images_that_cannot_be_scored_are_flagged(server):
    score = decode_score(bytearray(exchange(server.port, mood("fine", "invalid"))[2]), 2)
    assert score.valid.tolist() == score.map_valid.tolist() == [True, False]


@pytest.mark.parametrize("num_whole_bytes", [0, 40, len(request()) - len(BODY) + 10])
def test_client_that_drips_is_cut_off(monkeypatch, num_whole_bytes):
    """In the request's line, in its headers, and in its body; the clock does not start again with each byte."""
    monkeypatch.setattr(reward_server, "HEAD_TIMEOUT", 0.3)
    data = request()
    with (
        served(MoodyScorer(), TOKEN, timeout=0.3) as server,
        socket.create_connection(("127.0.0.1", server.port)) as connection,
    ):
        connection.sendall(data[:num_whole_bytes])
        connection.settimeout(0.02)
        answer, rest = b"", iter(data[num_whole_bytes : num_whole_bytes + 1000])
        while not answer:
            connection.sendall(bytes([next(rest)]))
            with suppress(TimeoutError):
                answer = connection.recv(65536)
        connection.settimeout(None)
        answer += b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408") and b"too slowly" in answer


def test_requests_beyond_the_limit_are_told_to_come_back():
    scorer = MoodyPool()
    with served(scorer, TOKEN, max_requests=2) as server:
        answers = []
        waiting = [
            threading.Thread(target=lambda: answers.append(exchange(server.port, mood("wait")))) for _ in range(2)
        ]
        for thread in waiting:
            thread.start()
        wait_until(lambda: scorer.num_waiting == 2)
        status, headers, body = exchange(server.port, request())
        assert status == 503 and headers["retry-after"] == "1" and b"too many requests" in body
        assert exchange(server.port, request(Authorization=None))[0] == 401  # a stranger learns nothing of it
        assert exchange(server.port, request(b"", "GET /health HTTP/1.1", Authorization=None))[0] == 200
        scorer.released.set()
        for thread in waiting:
            thread.join()
        assert [answer[0] for answer in answers] == [200, 200]
        assert exchange(server.port, request())[0] == 200


def test_connections_beyond_the_limit_are_turned_away(monkeypatch):
    monkeypatch.setattr(reward_server, "MORE_CONNECTIONS", 2)
    with served(MoodyScorer(), TOKEN, max_requests=1) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        with socket.create_connection(("127.0.0.1", server.port)) as one_more:
            assert b"503" in one_more.recv(65536)
        for connection in idle:
            connection.close()
        wait_until(lambda: (exchange(server.port, request()) or [None])[0] == 200)


def test_strangers_headers_take_no_memory(monkeypatch):
    """As many connections as there may be, each with the longest head that is read."""
    monkeypatch.setattr(reward_server, "MORE_CONNECTIONS", 60)
    head = b"POST /score HTTP/1.1\r\n" + b"a:b\r\n" * 20_000
    with served(MoodyScorer(), TOKEN, max_requests=4) as server:
        tracemalloc.start()
        strangers = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(64)]
        for stranger in strangers:
            with suppress(OSError):
                stranger.sendall(head)
        assert all(b"431" in stranger.recv(65536) for stranger in strangers)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
        tracemalloc.stop()
        for stranger in strangers:
            stranger.close()


def test_client_that_does_not_read_its_answer_is_cut_off():
    images = np.zeros((4, 1024, 1024, 3), np.uint8)  # 16 MiB of map come back, more than the kernel keeps
    with (
        served(MoodyScorer(), timeout=0.5) as server,
        socket.create_connection(("127.0.0.1", server.port)) as connection,
    ):
        connection.sendall(request(encode_batch(images, PROMPTS, None)))
        wait_until(lambda: not server.server_state.connections)
        received = b""
        with suppress(ConnectionResetError):
            while chunk := connection.recv(2**20):
                received += chunk
        assert 0 < len(received) < 16 * 2**20


def drain(port, data):
    """Send bytes, and keep nothing of the answer."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(data)
        while connection.recv(65536):
            pass


def test_bodies_and_answers_wait_for_their_turn():
    """Of many clients the server holds the bodies of three: memory does not grow with their number."""
    batch = encode_batch(np.zeros((4, 512, 512, 3), np.uint8), ["wait", *PROMPTS[1:]], None)  # 3 MiB, and 4 of answer
    scorer = MoodyScorer()
    with served(scorer) as server:
        threads = [threading.Thread(target=drain, args=(server.port, request(batch))) for _ in range(24)]
        tracemalloc.start()
        for thread in threads:
            thread.start()
        wait_until(lambda: len(server.server_state.connections) == 24 and scorer.num_waiting == 1)
        scorer.released.set()
        for thread in threads:
            thread.join()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # 24 bodies in float alone would be 288 MiB
    assert peak < 100 * 2**20  # 18 were measured


def test_scorer_without_workers_scores_one_batch_at_a_time():
    scorer = MoodyScorer()
    with served(scorer, TOKEN, max_requests=3) as server:
        threads = [threading.Thread(target=exchange, args=(server.port, mood("wait"))) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(server.server_state.connections) == 3 and scorer.num_waiting == 1)
        scorer.released.set()
        for thread in threads:
            thread.join()
    assert scorer.num_waiting == 3 and scorer.most_at_once == 1


def test_closing_waits_for_the_requests_in_hand():
    scorer, answers = MoodyScorer(), []
    with served(scorer, TOKEN) as server:
        thread = threading.Thread(target=lambda: answers.append(exchange(server.port, mood("wait"))))
        thread.start()
        wait_until(lambda: scorer.num_waiting == 1)
        threading.Timer(0.2, scorer.released.set).start()
    assert scorer.released.is_set()
    thread.join()
    assert answers[0][0] == 200
