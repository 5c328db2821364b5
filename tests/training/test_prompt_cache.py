"""Prompt embeddings: each prompt encoded once, and what comes out of a cache is what went in."""

import pytest
import torch

from flow_grpo.training.policies.base import PromptEmbeds
from flow_grpo.training.prompt_cache import PromptCache

ROW_BYTES = (3 * 4 + 2) * 4


class Encoder:
    """Embeddings that say which prompt they belong to, and a list of what was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts):
        self.asked.append(list(prompts))
        values = torch.tensor([float(prompt) for prompt in prompts])
        return PromptEmbeds(tokens=values[:, None, None].expand(-1, 3, 4), pooled=-values[:, None].expand(-1, 2))


@pytest.fixture
def encoder():
    return Encoder()


def cache(encoder, folder=None, rows=100, identity="model"):
    return PromptCache(encoder, torch.device("cpu"), identity, max_bytes=rows * ROW_BYTES, folder=folder)


def check(embeds, prompts):
    expected = Encoder()(prompts)
    assert torch.equal(embeds.tokens, expected.tokens) and torch.equal(embeds.pooled, expected.pooled)


def test_each_prompt_is_encoded_once_in_whatever_company(encoder):
    encode = cache(encoder)
    for prompts in (["1", "2"], ["2", "3", "2"], ["3", "1"]):
        check(encode(prompts), prompts)
    assert encoder.asked == [["1", "2"], ["3"]]


def test_the_longest_unused_leave_a_full_memory_first(encoder):
    encode = cache(encoder, rows=2)
    encode(["1"]), encode(["2"]), encode(["1"]), encode(["3"])  # 2 leaves
    encode(["1"]), encode(["3"])
    assert encoder.asked == [["1"], ["2"], ["3"]]
    encode(["2"])
    assert encoder.asked[-1] == ["2"]


def test_without_memory_everything_is_encoded_again_and_right(encoder):
    encode = cache(encoder, rows=0)
    for _ in range(2):
        check(encode(["1", "2", "1"]), ["1", "2", "1"])
    assert encoder.asked == [["1", "2"]] * 2


def test_a_folder_serves_later_runs(encoder, tmp_path):
    cache(encoder, tmp_path)(["1", "2"])
    later = Encoder()
    check(cache(later, tmp_path)(["2", "3", "1"]), ["2", "3", "1"])
    assert later.asked == [["3"]]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3 and not list(tmp_path.rglob("*.tmp"))


def test_another_model_does_not_read_them(encoder, tmp_path):
    cache(encoder, tmp_path)(["1"])
    cache(encoder, tmp_path, identity="another model")(["1"])
    assert encoder.asked == [["1"], ["1"]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-5],
        lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    ],
    ids=["empty", "torn in its head", "torn in its values", "a flipped bit"],
)
def test_a_damaged_file_is_encoded_again_and_written_anew(encoder, tmp_path, damage):
    cache(encoder, tmp_path)(["1", "2"])
    path = cache(encoder, tmp_path)._path("1")
    path.write_bytes(damage(path.read_bytes()))
    for asked in ([["1"]], []):
        later = Encoder()
        check(cache(later, tmp_path)(["1", "2"]), ["1", "2"])
        assert later.asked == asked


def test_a_folder_that_takes_nothing_ends_no_run_and_is_warned_of_once(encoder, tmp_path, caplog):
    (tmp_path / "file").touch()
    encode = cache(encoder, tmp_path / "file", rows=0)
    for _ in range(2):
        check(encode(["1", "2"]), ["1", "2"])
    said = [record.message for record in caplog.records if record.name.startswith("flow_grpo")]
    assert [message.split(" (")[0] for message in said] == [f"{tmp_path / 'file'} takes no more embeddings"]


def test_a_real_policys_embeddings_are_the_same_to_the_bit_in_whatever_company(policy, prompts, tmp_path):
    """As a resumed run meets them: alone, beside prompts that the first run knew already, and from the folder."""

    def encode(*company):
        return PromptCache(policy.encode_prompts, policy.device, "tiny-sd3", 2**30, tmp_path)(list(company))[:1]

    first = encode(prompts[0], *(f"{prompts[1]} {number}" for number in range(4)))
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    for _ in range(2):  # encoded alone, then read from the folder
        again = encode(prompts[0])
        assert torch.equal(again.tokens, first.tokens) and torch.equal(again.pooled, first.pooled)
    direct = policy.encode_prompts(prompts[:1])
    assert torch.equal(direct.tokens, first.tokens) and torch.equal(direct.pooled, first.pooled)
