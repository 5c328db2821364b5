"""A remote scorer gives what it gives at home, tries again what may pass, and says why where it cannot."""

import logging
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import pytest
import torch

from config.grpo import get_config
from config.validation import resolve
from flow_grpo import remote_scorer
from flow_grpo.remote.wire import MAX_TEXT, encode_score
from flow_grpo.remote_scorer import RemoteScorer
from flow_grpo.rewards import multi_score
from flow_grpo.score import PromptErrors, Score
from flow_grpo.scorers import make_scorer
from tests.hostile_requests import TOKEN
from tests.moody_scorer import MoodyPool, MoodyScorer
from tests.serving import served
from tests.waiting import wait_until

LEVELS = torch.randint(0, 256, (3, 3, 8, 12), generator=torch.Generator().manual_seed(0)) / 255
PROMPTS = ["one", "zwei", "✓"]


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(remote_scorer, "FIRST_DELAY", 0.01)
    monkeypatch.delenv("FLOW_GRPO_REWARD_TOKEN", raising=False)


@contextmanager
def scripted(*answers):
    """A server that reads each request and gives the next of these bytes, whatever they are; its URL and its requests."""
    listener, requests = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                data = connection.recv(65536)
                while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < content_length(data):
                    data += connection.recv(65536)
                requests.append(data)
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests


def content_length(request):
    return int(request.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


def http(status, body=b"", *headers):
    """As the reward server answers: without the last header the next try might come before the connection is closed."""
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 %d X" % status, *headers, length, b"Connection: close", b"", body])


def ok(reward=(0.0, 0.5, 1.0)):
    return http(200, encode_score(Score(torch.tensor(reward))))


def assert_equal_scores(score, reference):
    for name in ("reward", "reward_map", "valid", "map_valid"):
        ours, theirs = getattr(score, name), getattr(reference, name)
        if ours is not theirs:  # None is
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert score.map_kind == reference.map_kind and score.details.keys() == reference.details.keys()
    assert all(torch.equal(score.details[name], reference.details[name]) for name in score.details)


@pytest.mark.parametrize("map_kind", ["reward", "importance", None])
@pytest.mark.parametrize("metadata", [None, [], [{"a": 1, "b": {"c": [2]}}, {}, {"x": None}]])
def test_remote_score_of_8_bit_images_is_the_local_one_bit_for_bit(map_kind, metadata):
    scorer, prompts = MoodyScorer(map_kind), ["one", "invalid", "✓"]
    with served(scorer) as server:
        remote = RemoteScorer(server.url)(LEVELS, prompts, metadata)
    assert_equal_scores(remote, scorer(LEVELS, prompts, metadata))


def test_images_are_rounded_to_8_bits():
    with served(MoodyScorer()) as server:
        remote = RemoteScorer(server.url)
        assert_equal_scores(remote(LEVELS + 0.4 / 255 * (LEVELS < 1), PROMPTS), remote(LEVELS, PROMPTS))


def test_threads_share_a_scorer():
    scorer, results = MoodyPool(), {}
    with served(scorer) as server:
        remote = RemoteScorer(server.url, num_connections=3)

        def score(number):
            batch = LEVELS.roll(number, 0)
            results[number] = [remote(batch, [str(number)] * 3) for _ in range(3)]

        threads = [threading.Thread(target=score, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 6
    for number, scores in results.items():
        for remote in scores:
            assert_equal_scores(remote, scorer(LEVELS.roll(number, 0), [str(number)] * 3))


def test_submit_returns_before_anything_is_scored_and_copies_the_images():
    scorer, images = MoodyScorer(), LEVELS.clone()
    with served(scorer) as server:
        pending = RemoteScorer(server.url).submit(images, ["wait"] * 3)
        images.zero_()
        scorer.released.set()
        assert_equal_scores(pending.result(), scorer(LEVELS, ["wait"] * 3))


def test_no_more_requests_at_a_time_than_connections():
    scorer = MoodyPool()
    with served(scorer) as server:
        remote = RemoteScorer(server.url, num_connections=2)
        pending = [remote.submit(LEVELS, ["wait"] * 3) for _ in range(5)]
        wait_until(lambda: scorer.num_waiting == 2)
        time.sleep(0.2)  # in which the others would come
        assert len(server.server_state.connections) == 2
        scorer.released.set()
        assert len([score.result() for score in pending]) == 5
    assert scorer.num_waiting == 5 and scorer.most_at_once == 2


def test_name_with_a_url_makes_a_remote_scorer_with_options():
    with served(MoodyScorer()) as server:
        name = f"remote:{server.url}"
        details, extras = multi_score("cpu", {name: 2.0}, {name: {"timeout": 30.0}})(LEVELS, PROMPTS)
    torch.testing.assert_close(details["avg"], 2 * LEVELS.mean((1, 2, 3)))
    assert extras["map_kind"] == "importance" and f"{name}/length" in extras["details"]
    with pytest.raises(ValueError, match="does not take token; it takes timeout, retries"):
        make_scorer(name, token="secret")


def test_name_with_a_url_is_a_reward_of_a_configuration():
    config, name = get_config("tiny_ocr_map"), "remote:http://10.0.0.5:8000"
    config.rewards[name] = 0.5
    config.reward_options[name] = {"retries": 2}
    resolved, _ = resolve(config, 1)
    assert resolved.rewards.to_dict()[name] == 0.5 and resolved.reward_options.to_dict()[name] == {"retries": 2}


@pytest.mark.parametrize(
    "passing",
    [
        b"",  # the server dies before it answers
        http(500),
        http(503, b"", b"Retry-After: 0"),
        http(502, b"<html>proxy</html>"),
        http(408),
        http(429),
        ok()[:-1],  # or in the middle
        ok()[:20],
        ok().replace(b"Content-Length", b"Content-Width"),
        b"no HTTP at all\r\n\r\n",
    ],
)
def test_what_may_pass_is_tried_again(passing, caplog):
    with scripted(passing, passing, ok()) as (url, requests), caplog.at_level(logging.WARNING):
        assert RemoteScorer(url, retries=2)(LEVELS, PROMPTS).reward.tolist() == [0.0, 0.5, 1.0]
    assert len(requests) == 3 and requests[0] == requests[1] == requests[2]
    assert "1 of 3 tries" in caplog.text and "2 of 3 tries" in caplog.text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (http(400, b'{"error": "one prompt too few"}'), r"refused the batch: one prompt too few \(HTTP 400\)"),
        (http(404, b"<html>"), r"refused the batch: '<html>' \(HTTP 404\)"),
        (http(301, b"", b"Location: http://elsewhere/"), r"refused the batch: '' \(HTTP 301\)"),
        (http(422, b"[" * 100000), "HTTP 422"),
    ],
)
def test_refusal_is_not_tried_again_and_gives_its_reason(answer, reason):
    with scripted(answer) as (url, requests):
        with pytest.raises(ValueError, match=reason):
            RemoteScorer(url)(LEVELS, PROMPTS)
        assert len(requests) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ok([1.0, 2.0]), r"no score: reward must be \(3,\)"),
        (http(200, b"\x80\x04K\x01."), "no score: the header may take"),  # a pickle is not opened
        (http(200, bytes(2**21)), "larger than 1048576 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n200000\r\n" + bytes(2**21),
            "larger than 1048576 bytes",
        ),
    ],
)
def test_answer_that_is_no_score_is_an_error(answer, reason):
    with scripted(answer) as (url, _), pytest.raises(RuntimeError, match=reason):
        RemoteScorer(url, max_mib=1)(LEVELS, PROMPTS)


def test_server_that_stays_away_is_an_error_after_all_tries():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody else gets the port, and nobody listens
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RuntimeError, match=f"{url} gave no score in 3 tries, the last: ConnectError"):
            RemoteScorer(url, retries=2)(LEVELS, PROMPTS)
        with pytest.raises(ValueError, match=f"{url} gave no check in 1 tries, .*; see whether the server runs"):
            RemoteScorer(url, retries=0).check_prompts(PROMPTS)  # before a run the address is what the user can mend


def test_scorer_that_keeps_failing_is_an_error_with_its_reason():
    with (
        served(MoodyScorer()) as server,
        pytest.raises(RuntimeError, match="in 2 tries, the last: HTTP 500: the scorer failed: OSError: no mood"),
    ):
        RemoteScorer(server.url, retries=1)(LEVELS, ["raise"] * 3)


def test_answer_that_does_not_come_in_time_is_tried_again():
    scorer = MoodyPool()
    with served(scorer) as server:
        remote = RemoteScorer(server.url, timeout=1.0, retries=1)
        remote(LEVELS, PROMPTS)  # the first batch takes longer: the client's libraries are still being imported
        with pytest.raises(RuntimeError, match="in 2 tries, the last: no answer within 1 s"):
            remote(LEVELS, ["wait"] * 3)
        scorer.released.set()
    assert scorer.num_waiting == 2


@pytest.mark.parametrize("beginning", [b"HTTP/1.1 200 OK\r\nX: ", b"", ok()[:150]])
def test_server_that_drips_does_not_outlast_the_timeout(beginning):
    """In its answer's headers, in its first line, and in its body: the clock does not start again with each byte."""
    over = threading.Event()

    def drip(listener):
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(beginning)
            while not over.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        remote = RemoteScorer(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.5, retries=0)
        with pytest.raises(RuntimeError, match="in 1 tries, the last: no answer within 0.5 s"):
            remote(LEVELS, PROMPTS)
        over.set()


def test_submit_gives_a_future():
    with served(MoodyScorer()) as server:
        pending = RemoteScorer(server.url).submit(LEVELS, PROMPTS)
        assert isinstance(pending, Future) and len(pending.result().reward) == 3 and pending.done()


def test_bad_input_is_refused_without_a_request():
    remote = RemoteScorer("http://127.0.0.1:9")
    for arguments in ((LEVELS * 255, PROMPTS), (LEVELS, PROMPTS[:2]), (LEVELS, PROMPTS, [{"a": {1}}] * 3)):
        with pytest.raises(ValueError):
            remote.submit(*arguments)


def test_token_comes_from_the_environment(monkeypatch):
    with served(MoodyScorer(), TOKEN) as server:
        with pytest.raises(ValueError, match="HTTP 401"):
            RemoteScorer(server.url)(LEVELS, PROMPTS)
        monkeypatch.setenv("FLOW_GRPO_REWARD_TOKEN", "another")
        with pytest.raises(ValueError, match="HTTP 401") as caught:
            RemoteScorer(server.url)(LEVELS, PROMPTS)
        assert "another" not in str(caught.value)
        monkeypatch.setenv("MINE", TOKEN)
        assert len(RemoteScorer(server.url, token_env="MINE")(LEVELS, PROMPTS).reward) == 3


def test_too_large_a_batch_hears_the_servers_limit():
    with served(MoodyScorer(), max_bytes=2**20) as server, pytest.raises(ValueError, match="1048576 bytes"):
        RemoteScorer(server.url)(torch.zeros(20, 3, 512, 512), ["x"] * 20)


@pytest.mark.parametrize(
    "url", ["", "host:8000", "ftp://host", "http://", "http://user:pw@host", "http://host?a=1", "http://host:70000"]
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError):
        make_scorer(f"remote:{url}")


@pytest.mark.parametrize(
    "option", [{"timeout": 0}, {"retries": -1}, {"num_connections": 0}, {"max_mib": 0}, {"max_mib": float("inf")}]
)
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match="timeout and max_mib must be above 0"):
        RemoteScorer("http://host", **option)


def test_path_of_a_url_is_kept():
    with scripted(ok()) as (url, requests):
        RemoteScorer(f"{url}/rewards/")(LEVELS, PROMPTS)
    assert requests[0].startswith(b"POST /rewards/score HTTP/1.1\r\n")


def test_prompts_are_checked_by_the_server_with_the_words_of_its_scorer(monkeypatch):
    monkeypatch.setattr(remote_scorer, "PROMPTS_PER_CHECK", 2)
    scorer = make_scorer("ocr", engine=lambda image: [])
    prompts = ['a "HUT"', "a hut", 'a "HAT"', 'a "HUT" and a "', 'a "HOT"' + " " * MAX_TEXT]
    with pytest.raises(PromptErrors) as here:
        scorer.check_prompts(prompts[:4])
    with served(scorer) as server:
        remote = RemoteScorer(server.url)
        with pytest.raises(PromptErrors) as there:
            remote.check_prompts(prompts)
        remote.check_prompts(prompts[:4], [{"targets": ["HUT"]}, {"targets": ["HAT"]}] * 2)
    too_long = there.value.faults.pop(4)
    assert there.value.faults == here.value.faults and there.value.number == 5
    assert f"may take {MAX_TEXT} characters, got {len(prompts[4])}" in too_long


def test_a_server_that_knows_no_check_is_not_asked_again(caplog):
    with scripted(http(404, b'{"error": "nothing is here"}')) as (url, requests), caplog.at_level(logging.WARNING):
        RemoteScorer(url).check_prompts(PROMPTS * 100)
    assert len(requests) == 1 and requests[0].startswith(b"POST /check ")
    assert "cannot check prompts before the run (HTTP 404); update it" in caplog.text


def test_a_check_that_is_refused_raises_the_reason():
    with scripted(http(401, b'{"error": "no token"}')) as (url, _), pytest.raises(ValueError, match="no token"):
        RemoteScorer(url).check_prompts(PROMPTS)
