import pytest
import torch
import torch.nn.functional as F

from flow_grpo.clip.preprocess import OPENAI_MEAN, OPENAI_STD
from flow_grpo.clip_scorer import ClipScorer
from tests.clip_models import make_clip

PROMPTS = ["red cat", "a dog"]


@pytest.fixture(scope="module")
def pair():
    return make_clip()


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.rand(2, 3, 40, 40)


def test_reward_is_the_models_own_logit_over_thirty(pair, images):
    model, tokenizer = pair
    scorer = ClipScorer(pair)
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    logits = model(pixel_values=scorer.clip.preprocess(images), **tokens).logits_per_image.diagonal()
    torch.testing.assert_close(scorer(images, PROMPTS).reward, logits / 30)


@pytest.mark.parametrize("size", [(40, 40), (60, 45), (24, 24)])
def test_bilinear_resize_is_flow_grpos_own_score(pair, size):
    """torchvision's Resize and CenterCrop of a float image, as torch computes them: nothing is rounded to 8 bits."""
    model, tokenizer = pair
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    height, width = (32 * side // min(size) for side in size)  # (42, 32) from (60, 45)
    resized = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    top = round((height - 32) / 2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))
    pixels = (resized[:, :, top : top + 32] - mean) / std
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    expected = model(pixel_values=pixels, **tokens).logits_per_image.diagonal() / 30
    bilinear, bicubic = ClipScorer(pair, resize="bilinear"), ClipScorer(pair)
    torch.testing.assert_close(bilinear(images, PROMPTS).reward, expected)
    assert not torch.allclose(bicubic(images, PROMPTS).reward, expected, atol=1e-4)


def test_both_filters_share_one_model_and_no_other_filter_is_known(pair):
    bilinear, bicubic = ClipScorer(pair, resize="bilinear"), ClipScorer(pair)
    assert bilinear.clip.tower is bicubic.clip.tower and bicubic.clip.preprocess.resize == "bicubic"
    with pytest.raises(ValueError, match="unknown resize 'nearest'; choose one of bicubic, bilinear"):
        ClipScorer(pair, resize="nearest")


def test_divisor_of_the_models_scale_gives_the_cosine(pair, images):
    model, tokenizer = pair
    scorer = ClipScorer(pair, logit_divisor=model.logit_scale.exp().item())
    texts = model.get_text_features(**tokenizer(PROMPTS, padding=True, return_tensors="pt")).pooler_output
    embeds = model.get_image_features(scorer.clip.preprocess(images)).pooler_output
    torch.testing.assert_close(scorer(images, PROMPTS).reward, torch.cosine_similarity(embeds, texts))


def test_there_is_no_map_and_the_length_of_prompts_is_told(pair, images):
    score = ClipScorer(pair)(images, ["a" * 80, ""])
    assert score.reward_map is None and score.map_kind is None and not score.map_valid.any()
    assert score.valid.all() and score.details["truncated"].tolist() == [1, 0]


def test_tokenizer_may_stand_beside_the_model(pair, images):
    model, tokenizer = pair
    assert torch.equal(ClipScorer(model, tokenizer)(images, PROMPTS).reward, ClipScorer(pair)(images, PROMPTS).reward)


def test_score_carries_no_graph(pair, images):
    assert not ClipScorer(pair)(images.clone().requires_grad_(), PROMPTS).reward.requires_grad
