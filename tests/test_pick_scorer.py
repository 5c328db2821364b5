import pytest
import torch

from flow_grpo.clip_scorer import ClipScorer
from flow_grpo.scorers import make_scorer
from tests.clip_models import make_clip

PROMPTS = ["red cat", "a dog"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model in one folder and its tokenizer in another, as PickScore's are published."""
    folder = tmp_path_factory.mktemp("pickscore")
    model, tokenizer = make_clip()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "tokenizer")
    return {"model": str(folder / "model"), "tokenizer": str(folder / "tokenizer")}


def test_reward_is_the_logit_over_26(folders):
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    reward = make_scorer("pickscore", **folders)(images, PROMPTS).reward
    torch.testing.assert_close(reward, ClipScorer(make_clip(), logit_divisor=26.0)(images, PROMPTS).reward)
