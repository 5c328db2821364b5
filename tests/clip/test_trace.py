import torch

from flow_grpo.clip.load import load_clip
from flow_grpo.clip.trace import Request
from tests.clip_models import make_clip


def test_requests_are_joined():
    joined = Request(features=frozenset({1})) | Request(features=frozenset({2}), contributions=True)
    assert joined == Request(features=frozenset({1, 2}), contributions=True)
    assert joined.first_block == 1 and Request(contributions=True).first_block == float("inf")
    assert (joined | Request(pixels=True)).first_block == 0


def test_joined_request_gives_what_each_alone_gives():
    clip, images, prompts = load_clip(make_clip()), torch.rand(2, 3, 40, 40), ["red cat", "a dog"]
    more = Request(pixels=True, features=frozenset({0, 1}), attention=frozenset({1, 2}), contributions=True)
    one = Request(features=frozenset({2}))
    alone, joined = clip.trace(images, prompts, one), clip.trace(images, prompts, one | more)
    torch.testing.assert_close(alone.features[2].gradient, joined.features[2].gradient)
    torch.testing.assert_close(alone.logits, joined.logits)
