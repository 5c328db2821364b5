"""Messages survive the journey bit for bit, the safetensors library agrees with them, and everything else is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
import torch

from flow_grpo.remote.wire import (
    bearer_token,
    decode_batch,
    decode_score,
    encode_batch,
    encode_score,
    pack,
    unpack,
)
from flow_grpo.score import Score

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
PROMPTS = ['a sign that says "HÜT"', "☃\n\x00"]
MAP = torch.rand(2, 5, 7)


def full_score():
    return Score(
        torch.tensor([0.1, -3.0]),
        torch.stack([MAP[0], torch.full((5, 7), torch.nan)]),
        "reward",
        torch.tensor([True, False]),
        {"exact": torch.tensor([1.0, 0.0]), "a/b": torch.rand(2)},
        torch.tensor([True, False]),
    )


def answer(**changes):
    """The good answer with arrays replaced, or left out where None."""
    score = full_score()
    arrays = {name: getattr(score, name).numpy() for name in ("reward", "reward_map", "valid", "map_valid")} | changes
    return bytearray(pack({n: a for n, a in arrays.items() if a is not None}, {"map_kind": "reward"}))


@pytest.mark.parametrize("metadata", [None, [{"tag": "ü", "boxes": [[1, 2.5, None]]}, {}]])
def test_batch_survives_the_journey(metadata):
    images, prompts, received = decode_batch(bytearray(encode_batch(IMAGES, PROMPTS, metadata)), max_batch=2)
    assert torch.equal(images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2)) and images.dtype == torch.uint8
    assert prompts == PROMPTS and received == metadata


def test_score_survives_the_journey_bit_for_bit():
    sent = full_score()
    received = decode_score(bytearray(encode_score(sent)), 2)
    for name in ("reward", "reward_map", "map_valid", "valid"):
        torch.testing.assert_close(getattr(received, name), getattr(sent, name), rtol=0, atol=0, equal_nan=True)
    assert received.map_kind == "reward" and received.details.keys() == sent.details.keys()
    assert all(torch.equal(received.details[name], sent.details[name]) for name in sent.details)


def test_score_without_map_survives_the_journey():
    received = decode_score(bytearray(encode_score(Score(torch.tensor([0.5])))), 1)
    assert received.reward.tolist() == [0.5] and received.reward_map is None and received.map_kind is None
    assert received.valid.tolist() == [True] and received.map_valid.tolist() == [False]


def test_scores_of_other_precisions_arrive_in_fp32():
    sent = Score(torch.tensor([1 / 3], dtype=torch.bfloat16), torch.rand(1, 4, 4).half(), "importance")
    received = decode_score(bytearray(encode_score(sent)), 1)
    assert torch.equal(received.reward, sent.reward.float()) and torch.equal(
        received.reward_map, sent.reward_map.float()
    )


def test_the_safetensors_library_reads_what_is_packed():
    message = encode_score(full_score())
    arrays = safetensors.numpy.load(message)
    assert np.array_equal(arrays["reward_map"][0], MAP[0].numpy()) and arrays["valid"].tolist() == [True, False]
    assert (
        len(message) % 8 == (arrays["valid"].nbytes + arrays["map_valid"].nbytes) % 8
    )  # the widest come first, aligned


def test_what_the_safetensors_library_writes_is_unpacked():
    sent = {"one": IMAGES, "two": np.float32([[1.5]]), "three": np.array([True, False])}
    arrays, texts = unpack(bytearray(safetensors.numpy.save(sent, {"prompts": "[]"})))
    assert texts == {"prompts": "[]"} and arrays.keys() == sent.keys()
    assert all(np.array_equal(arrays[name], sent[name]) for name in sent)


def test_unaligned_arrays_are_read_too():
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    message = len(header).to_bytes(8, "little") + header + np.float32([2.5]).tobytes()
    assert len(header) % 4 and unpack(bytearray(message))[0]["x"].tolist() == [2.5]


def test_an_image_without_metadata_arrives_with_an_empty_one():
    assert decode_batch(encode_batch(IMAGES, PROMPTS, [None, {"a": 1}]), max_batch=2)[2] == [{}, {"a": 1}]


@pytest.mark.parametrize("metadata", [[{"a": float("nan")}, {}], [{"a": torch.zeros(1)}, {}], [{}, {"a": {1, 2}}]])
def test_metadata_that_json_cannot_hold_is_refused_before_it_is_sent(metadata):
    with pytest.raises(ValueError, match="must be JSON to be scored elsewhere"):
        encode_batch(IMAGES, PROMPTS, metadata)


def test_a_prompt_without_utf8_is_refused_before_it_is_sent():
    with pytest.raises(ValueError, match="surrogates not allowed"):
        encode_batch(IMAGES, ["a", "\ud800"], None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reward": None}, "may have .*'reward'.*got"),
        ({"valid": None}, "may have"),
        ({"extra": np.float32([1, 2])}, "may have"),
        ({"reward": np.float32([1, 2, 3])}, r"reward must be \(2,\)"),
        ({"reward": np.float32([1, np.nan])}, "reward must be finite"),
        ({"reward": np.array([True, False])}, "must be F32"),
        ({"reward": np.float32([[1, 2], [3, 4]])}, r"reward must be \(B,\)"),
        ({"reward_map": None}, "without a reward_map"),
        ({"reward_map": np.full((2, 4, 4), 2, np.float32)}, r"reward_map must lie in \[0, 1\]"),
        ({"reward_map": np.zeros((3, 4, 4), np.float32)}, r"reward_map must be \(2, H, W\)"),
        ({"valid": np.float32([1, 1])}, r"valid must be \(2,\) bool"),
        ({"valid": np.array([False, False])}, "map_valid must be False where valid is"),
        ({"details/x": np.float32([1])}, r"details\['x'\] must be \(2,\)"),
        ({"details/x": np.uint8([1, 2])}, "must be F32"),
    ],
)
def test_an_answer_that_is_no_score_is_refused(changes, reason):
    decode_score(answer(), 2)
    with pytest.raises(ValueError, match=reason):
        decode_score(answer(**changes), 2)


def test_flags_are_zero_or_one():
    message = answer()
    message[-1] = 2
    with pytest.raises(ValueError, match="flags other than 0 and 1"):
        decode_score(message, 2)


def test_every_truncation_is_refused():
    message = encode_batch(IMAGES, PROMPTS, None)
    for length in range(len(message)):
        with pytest.raises(ValueError):
            decode_batch(bytearray(message[:length]), max_batch=2)


def test_arrays_neither_overlap_nor_leave_gaps():
    def message(*offsets):
        entries = {
            str(begin): {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]} for begin, end in offsets
        }
        header = json.dumps(entries).encode()
        return bytearray(len(header).to_bytes(8, "little") + header + bytes(10))

    assert unpack(message((4, 10), (0, 4)))[0].keys() == {"0", "4"}
    for offsets in ([(0, 4), (5, 10)], [(0, 6), (4, 10)], [(0, 9)], [(1, 10)], []):
        with pytest.raises(ValueError, match="no safetensors file"):
            unpack(message(*offsets))


def test_more_images_than_allowed_are_refused():
    with pytest.raises(ValueError, match="may hold 1 images, got 2"):
        decode_batch(bytearray(encode_batch(IMAGES, PROMPTS, None)), max_batch=1)


@pytest.mark.parametrize("length", [16_384, 16_385])
def test_texts_are_bounded(length):
    """A scorer's time and memory grow with the text: none may be long enough to keep a server from its other clients."""
    entry = {"targets": ["x" * (length - 17)]}
    assert len(json.dumps(entry)) == length
    texts = (
        {"prompts": json.dumps(["a" * length, "b"])},
        {
            "prompts": json.dumps(PROMPTS),
            "metadata": json.dumps([entry, {}]),
        },
    )
    attempts = [lambda text=text: decode_batch(pack({"images": IMAGES}, text), 2) for text in texts]
    for attempt in attempts:
        if length == 16_384:
            attempt()
        else:
            with pytest.raises(ValueError, match="may take 16384 characters, got 16385"):
                attempt()


def test_what_was_read_travels():
    sent = Score(torch.ones(2), read=("HUT / 新鲜", ""))
    assert decode_score(encode_score(sent), 2).read == sent.read
    assert decode_score(encode_score(Score(torch.ones(2))), 2).read is None


def test_neutral_travels_and_is_half_where_a_server_says_nothing():
    sent = Score(torch.zeros(2), torch.zeros(2, 3, 4), "reward", neutral=0.2)
    message = encode_score(sent)
    assert decode_score(message, 2).neutral == 0.2
    assert decode_score(encode_score(replace(sent, neutral=np.float32(0.25))), 2).neutral == 0.25
    arrays, texts = unpack(message)
    texts.pop("neutral")
    assert decode_score(pack(arrays, texts), 2).neutral == 0.5
    for text in ("nan", "2", "high"):
        with pytest.raises(ValueError):
            decode_score(pack(arrays, texts | {"neutral": text}), 2)


def test_token_comes_from_its_variable_and_a_named_one_must_be_set(monkeypatch):
    monkeypatch.delenv("FLOW_GRPO_REWARD_TOKEN", raising=False)
    assert bearer_token() is None
    monkeypatch.setenv("FLOW_GRPO_REWARD_TOKEN", "abc")
    monkeypatch.setenv("MINE", "def")
    assert bearer_token() == "abc" and bearer_token("MINE") == "def"
    with pytest.raises(ValueError, match="THEIRS is to hold a token"):
        bearer_token("THEIRS")
    monkeypatch.setenv("MINE", "two words\n")
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        bearer_token("MINE")
    assert "words" not in str(caught.value)
