import pytest
import torch

from flow_grpo.clip_attention_scorer import ClipAttentionScorer, gradient_weighted, rolled_out
from flow_grpo.reward_map import normalise
from tests.clip_models import make_clip

PROMPTS = ["red cat", "a dog"]


@pytest.fixture(scope="module")
def pair():
    return make_clip(num_layers=4)


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.rand(2, 3, 32, 32)


@pytest.fixture(scope="module")
def published(pair, images):
    """All attention matrices of transformers' own eager forward, (B, heads, T, T) a block, and the logits' gradients."""
    model, tokenizer = make_clip(num_layers=4)
    model.set_attn_implementation("eager")
    pixels = ClipAttentionScorer(pair).clip.preprocess(images)
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    output = model(pixel_values=pixels, **tokens, output_attentions=True)
    attentions = output.vision_model_output.attentions
    return attentions, torch.autograd.grad(output.logits_per_image.diagonal().sum(), attentions)


def patches_of(rows):
    return rows[:, 1:].unflatten(1, (4, 4))


def relevance(monkeypatch, scorer, images):
    """What a scorer spreads over the pixels."""
    seen = []
    monkeypatch.setattr(
        "flow_grpo.clip_attention_scorer.spread", lambda relevance, trace: seen.append(relevance) or relevance
    )
    scorer.window_map(scorer.clip.trace(images, PROMPTS, scorer.request))
    return seen[0]


def assert_same_map(ours, expected):
    assert ours.shape == expected.shape and expected.amax() > expected.amin()
    assert (ours - expected).abs().max() < 1e-5 * (expected.amax() - expected.amin())


def test_last_block_is_the_mean_over_heads(monkeypatch, pair, images, published):
    scorer = ClipAttentionScorer(pair, gradient_weighted=False)
    expected = published[0][-1].mean(dim=1)[:, 0]
    assert_same_map(relevance(monkeypatch, scorer, images), patches_of(expected))


def test_last_block_weighted_is_chefers_rule(monkeypatch, pair, images, published):
    attentions, gradients = published
    expected = (attentions[-1] * gradients[-1]).clamp(min=0).mean(dim=1)[:, 0]
    assert_same_map(relevance(monkeypatch, ClipAttentionScorer(pair), images), patches_of(expected))


def test_rollout_is_abnar_and_zuidemas(monkeypatch, pair, images, published):
    identity = torch.eye(17)
    joint = identity.expand(2, -1, -1)
    for attention in published[0]:
        mixed = attention.mean(dim=1) + identity
        joint = (mixed / mixed.sum(dim=2, keepdim=True)) @ joint
    scorer = ClipAttentionScorer(pair, rollout=True, gradient_weighted=False)
    assert_same_map(relevance(monkeypatch, scorer, images), patches_of(joint[:, 0]))


def test_weighted_rollout_is_chefers(monkeypatch, pair, images, published):
    joint = torch.eye(17).expand(2, -1, -1)
    for attention, gradient in zip(*published):
        joint = joint + (attention * gradient).clamp(min=0).mean(dim=1) @ joint
    scorer = ClipAttentionScorer(pair, rollout=True)
    assert_same_map(relevance(monkeypatch, scorer, images), patches_of(joint[:, 0]))


def test_rules_by_hand():
    attention = torch.tensor([[[[0.5, 0.5]], [[0.2, 0.8]]]])  # (1, 2 heads, 1, 2)
    gradient = torch.tensor([[[[1.0, -1.0]], [[2.0, 1.0]]]])
    torch.testing.assert_close(gradient_weighted(attention, gradient), torch.tensor([[[0.45, 0.4]]]))
    blocks = [torch.tensor([[[0.5, 0.5], [0.0, 1.0]]]), torch.tensor([[[0.25, 0.75]]])]
    # (0.25 + 1, 0.75) / 2 from the last block, then half of it stays and half goes through the first
    torch.testing.assert_close(
        rolled_out(blocks, 0.5, 0.5), torch.tensor([[0.625 / 2 + 0.3125 / 2, 0.375 / 2 + (0.3125 + 0.375) / 2]])
    )


def test_map_is_the_relevance_stretched_and_enlarged(monkeypatch, pair, images):
    scorer = ClipAttentionScorer(pair)
    score = scorer(images, PROMPTS)
    stretched = normalise(relevance(monkeypatch, scorer, images))
    enlarged = torch.nn.functional.interpolate(stretched[:, None], (32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(score.reward_map, enlarged)


def test_tower_of_one_block_rolls_out_what_it_has(images):
    pair = make_clip(num_layers=1)
    for weighted in (False, True):
        one = ClipAttentionScorer(pair, rollout=False, gradient_weighted=weighted)(images, PROMPTS)
        other = ClipAttentionScorer(pair, rollout=True, gradient_weighted=weighted)(images, PROMPTS)
        torch.testing.assert_close(one.reward_map, other.reward_map)
