import pytest
import torch

from flow_grpo.clip.load import load_clip
from flow_grpo.clip_decomposition_scorer import ClipDecompositionScorer
from tests.clip_models import make_clip

PROMPTS = ["red cat", "a dog", ""]


@pytest.fixture(scope="module")
def pair():
    return make_clip()


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.rand(3, 3, 32, 32)


def contributions(pair, images, prompts, **options):
    clip = load_clip(pair, **options)
    trace = clip.trace(images, prompts, ClipDecompositionScorer.request)
    return trace.contributions, trace.logits


def test_terms_sum_to_the_score(pair, images):
    terms, logits = contributions(pair, images, PROMPTS)
    assert terms.tokens.shape == (3, 3, 17) and terms.mlps.shape == (3, 3) and terms.constant.shape == (3,)
    size = terms.tokens.abs().sum((1, 2)) + terms.mlps.abs().sum(1) + terms.constant.abs()
    assert ((terms.total() - logits).abs() < 1e-6 * size).all()  # a few fp32 ulps of what is added up
    assert (terms.tokens.abs().sum(2) > 0.01 * size[:, None]).all()  # nothing is left to the constant


def test_attention_terms_are_what_ablating_the_attention_takes_away(pair, images):
    """A block whose attention output is replaced by zero loses its tokens' terms, before later blocks answer."""
    model, _ = pair
    last = model.vision_model.encoder.layers[-1].self_attn
    terms, logits = contributions(pair, images, PROMPTS)
    seen = {}
    handle = last.register_forward_hook(lambda module, given, output: seen.update(out=output[0][:, 0]))
    clip = load_clip(pair)
    hidden = model.vision_model(clip.preprocess(images), output_hidden_states=True).hidden_states[-1][:, 0]
    handle.remove()
    with torch.no_grad():
        bias = last.out_proj.bias
        head = model.vision_model.post_layernorm
        texts = clip.embed_texts(PROMPTS)[0]
        # the head with its statistics held: linear, so that differences of scores are terms
        deviation = hidden.var(dim=1, unbiased=False, keepdim=True).add(head.eps).sqrt()
        norm = model.visual_projection(head(hidden)).norm(dim=1)

        def score(vector):
            scaled = (vector - vector.mean(dim=1, keepdim=True)) / deviation * head.weight
            return clip.logit_scale * (model.visual_projection(scaled) * texts).sum(dim=1) / norm

        expected = score(seen["out"] - bias)
    torch.testing.assert_close(terms.tokens[:, -1].sum(dim=1), expected, rtol=1e-4, atol=1e-5)


def test_terms_are_linear_in_the_text(pair, images):
    clip = load_clip(pair)
    texts, _ = clip.embed_texts(PROMPTS)
    pixels = clip.preprocess(images)

    def run(along):
        return clip.tower.run(pixels, along, ClipDecompositionScorer.request).contributions.tokens

    swapped = texts.roll(1, 0)
    torch.testing.assert_close(run(texts) * 2 - run(swapped), run(2 * texts - swapped), rtol=1e-4, atol=1e-4)


def test_map_is_the_patches_terms_stretched_and_enlarged(pair, images):
    terms, _ = contributions(pair, images, PROMPTS)
    raw = terms.tokens.sum(dim=1)[:, 1:].unflatten(1, (4, 4))
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    enlarged = torch.nn.functional.interpolate(((raw - low) / (high - low))[:, None], (32, 32), mode="bilinear")[:, 0]
    score = ClipDecompositionScorer(pair)(images, PROMPTS)
    torch.testing.assert_close(score.reward_map, enlarged, rtol=1e-4, atol=1e-5)


def test_terms_of_a_half_tower_sum_to_the_score_but_for_its_rounding(images):
    terms, logits = contributions(make_clip(), images, PROMPTS, dtype="bfloat16")
    size = terms.tokens.abs().sum((1, 2)) + terms.mlps.abs().sum(1) + terms.constant.abs()
    assert ((terms.total() - logits).abs() < 2**-8 * size).all()  # the residual stream is rounded to eight bits
