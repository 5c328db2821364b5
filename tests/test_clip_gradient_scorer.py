import pytest
import torch
from captum.attr import Saliency

from flow_grpo.clip.load import load_clip
from flow_grpo.clip_gradient_scorer import ClipGradientScorer
from flow_grpo.reward_map import gaussian_blur, normalise
from flow_grpo.rewards import WeightedScorers
from tests.clip_models import make_clip, scores_of

PROMPTS = ["red cat", "a dog"]


@pytest.fixture(scope="module")
def pair():
    return make_clip()


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.rand(2, 3, 48, 48)


def saliency(pair, images):
    """captum's |gradient| of each image's own logit, by the images as they are given."""
    clip = ClipGradientScorer(pair).clip
    scores = scores_of(pair, clip, PROMPTS)
    return Saliency(lambda given: scores(clip.preprocess(given))).attribute(images.clone().requires_grad_(), [0, 1])


def test_gradient_is_captums(pair, images):
    scorer = ClipGradientScorer(pair)
    ours = scorer.clip.trace(images, PROMPTS, scorer.request).pixels.gradient.abs()
    expected = saliency(pair, images)
    assert (ours - expected).abs().max() < 1e-5 * (expected.amax() - expected.amin())


def test_map_is_one_minus_the_normalised_magnitude(pair, images):
    magnitude = saliency(pair, images).square().sum(dim=1).sqrt()
    low, high = magnitude.amin((1, 2), keepdim=True), magnitude.amax((1, 2), keepdim=True)
    score = ClipGradientScorer(pair)(images, PROMPTS)
    torch.testing.assert_close(score.reward_map, 1 - (magnitude - low) / (high - low), rtol=0, atol=1e-5)
    assert score.map_kind == "importance"


def test_blur_comes_before_the_normalisation_and_percentiles_cut_outliers(pair, images):
    magnitude = gaussian_blur(saliency(pair, images).square().sum(dim=1).sqrt(), 2.0)
    score = ClipGradientScorer(pair, blur_sigma=2.0, quantiles=(0.05, 0.95))(images, PROMPTS)
    torch.testing.assert_close(score.reward_map, 1 - normalise(magnitude, (0.05, 0.95)), rtol=0, atol=1e-5)
    assert (score.reward_map == 0).float().mean() == pytest.approx(0.05, abs=0.01)


def test_cropped_pixels_have_no_part_in_the_normalisation(pair):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 80)
    reward_map = ClipGradientScorer(pair)(images, PROMPTS).reward_map
    inside = reward_map[:, :, 24:56]
    assert (inside.amax((1, 2)) == 1).all() and (inside.amin((1, 2)) == 0).all()
    outside = torch.cat([reward_map[:, :, :24], reward_map[:, :, 56:]], dim=2)
    torch.testing.assert_close(outside, inside.mean((1, 2))[:, None, None].expand_as(outside))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantiles": (0.9, 0.1)}, "quantiles must satisfy"),
        ({"quantiles": (0.0, 2.0)}, "quantiles must satisfy"),
        ({"blur_sigma": -1.0}, "blur_sigma"),
        ({"blur_sigma": float("nan")}, "blur_sigma"),
    ],
)
def test_bad_options_are_refused(pair, options, message):
    with pytest.raises(ValueError, match=message):
        ClipGradientScorer(pair, **options)


def test_gradient_itself_is_the_complement_of_the_complement():
    clip = load_clip(make_clip())
    images, prompts = torch.rand(2, 3, 32, 32), ["a red circle", "a blue square"]
    complement, gradient = ClipGradientScorer(clip), ClipGradientScorer(clip, complement=False)
    torch.testing.assert_close(
        gradient(images, prompts).reward_map, 1 - complement(images, prompts).reward_map, rtol=0, atol=1e-6
    )
    assert "upside down" in complement.training_warning and gradient.training_warning is None


def test_scorers_pass_on_what_a_trainer_should_know():
    scorers = WeightedScorers({"clip_gradient": ClipGradientScorer(load_clip(make_clip()))}, {"clip_gradient": 1.0})
    assert len(scorers.training_warnings) == 1 and "complement" in scorers.training_warnings[0]
