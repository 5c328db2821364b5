import pytest
import torch
from torchcam.methods import GradCAM

from flow_grpo.clip.load import load_clip
from flow_grpo.clip_gradcam_scorer import ClipGradcamScorer, gradcam
from tests.clip_models import make_clip, scores_of

PROMPTS = ["red cat", "a dog", "blue", ""]


@pytest.fixture(scope="module")
def pair():
    return make_clip(image_size=40, num_layers=4)  # a 5x5 grid


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.rand(4, 3, 40, 40)


def test_gradcam_by_hand():
    features = torch.tensor([[[[1.0, 2.0], [0.0, 4.0]]]])  # (1, 1, 2, 2): two places of two channels
    gradients = torch.tensor([[[[3.0, -1.0], [1.0, 0.0]]]])  # channel means 2 and -0.5
    assert gradcam(features, gradients).tolist() == [[[1.0, 0.0]]]  # 2 - 1, and relu(-2)


@pytest.mark.parametrize("block", [-1, 3, 2, 0])
def test_raw_map_is_torchcams(pair, images, block):
    scorer = ClipGradcamScorer(pair, block=block)
    index = block % 4
    scores = scores_of(pair, scorer.clip, PROMPTS)
    layer = f"features.vision_model.encoder.layers.{index}.layer_norm1"

    def to_grid(tokens):
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (5, 5))

    with GradCAM(scores, layer, reshape_transform=to_grid) as extractor:
        expected = extractor(list(range(4)), scores(scorer.clip.preprocess(images)), normalized=False)[0]
    ours = gradcam(*scorer.clip.trace(images, PROMPTS, scorer.request).features[index])
    assert expected.amax() > 0
    assert (ours - expected).abs().max() < 1e-5 * (expected.amax() - expected.amin())


def test_map_is_the_raw_map_stretched_and_enlarged(pair, images):
    scorer = ClipGradcamScorer(pair)
    images, prompts = images[:3], PROMPTS[:3]  # the ReLU leaves the last one nothing
    raw = gradcam(*scorer.clip.trace(images, prompts, scorer.request).features[3])
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    enlarged = torch.nn.functional.interpolate(((raw - low) / (high - low))[:, None], (40, 40), mode="bilinear")[:, 0]
    torch.testing.assert_close(scorer(images, prompts).reward_map, enlarged)


def test_map_without_a_positive_place_is_uniform_and_counted(pair, images):
    # of many prompts some leave the ReLU nothing
    prompts = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
    scorer = ClipGradcamScorer(pair)
    many = images[:1].repeat(len(prompts), 1, 1, 1)
    raw = gradcam(*scorer.clip.trace(many, prompts, scorer.request).features[3])
    empty = raw.amax(dim=(1, 2)) == 0
    assert 0 < empty.sum() < len(prompts)
    score = scorer(many, prompts)
    assert torch.equal(score.details["fallback"].bool(), empty) and torch.equal(score.map_valid, ~empty)
    assert (score.reward_map[empty] == 0.5).all()


def test_patch_grid_is_the_models(images):
    clip = load_clip(make_clip(image_size=48, patch_size=4))
    features = clip.trace(images, PROMPTS, ClipGradcamScorer(clip).request).features[2]
    assert features.value.shape == features.gradient.shape == (4, 12, 12, 32)


@pytest.mark.parametrize("block", [4, 5, -5])
def test_other_blocks_are_refused(pair, block):
    with pytest.raises(ValueError, match="block="):
        ClipGradcamScorer(pair, block=block)
