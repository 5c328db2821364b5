from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from flow_grpo.clip.load import load_clip
from flow_grpo.clip.map_scorer import ClipMapScorer, score_together
from flow_grpo.clip.trace import Request
from flow_grpo.clip.vit import VitTower
from flow_grpo.rewards import multi_score
from flow_grpo.scorers import make_scorer
from tests.clip_models import make_clip

PROMPTS = ["red cat", "a dog", ""]
MAPS = {
    "clip_gradient": {},
    "clip_gradcam": {},
    "clip_attention": {},
    "clip_decomposition": {},
    "plain attention": {"gradient_weighted": False},
    "rollout": {"rollout": True, "gradient_weighted": False},
    "weighted rollout": {"rollout": True},
}
PLAIN = {"plain attention", "rollout"}


@pytest.fixture(scope="module")
def clip():
    return load_clip(make_clip())


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.rand(3, 3, 64, 64)


def build(label, clip):
    return make_scorer(label if label.startswith("clip_") else "clip_attention", model=clip, **MAPS[label])


class Fixed(ClipMapScorer):
    """A map that is given, whatever the images."""

    request = Request()

    def __init__(self, clip, window):
        super().__init__(clip, 30.0)
        self._window = window

    def window_map(self, trace):
        return self._window


@pytest.mark.parametrize("label", MAPS)
def test_score_is_one_of_importance_in_the_images_size(clip, images, label):
    score = build(label, clip)(images, PROMPTS)
    assert score.map_kind == "importance" and score.map_valid.all() and score.valid.all()
    assert score.reward_map.shape == (3, 64, 64) and score.reward_map.dtype == torch.float32
    # the patches' extremes are 0 and 1; interpolated, the corners keep them and a patch's middle comes close
    assert (score.reward_map.amax(dim=(1, 2)) > 0.85).all() and (score.reward_map.amin(dim=(1, 2)) < 0.15).all()


@pytest.mark.parametrize("label", MAPS)
def test_reward_is_clipscores(clip, images, label):
    expected = make_scorer("clipscore", model=clip)(images, PROMPTS).reward
    torch.testing.assert_close(build(label, clip)(images, PROMPTS).reward, expected)


@pytest.mark.parametrize("label", MAPS)
def test_prompt_moves_all_maps_but_the_plain_ones(clip, images, label):
    scorer = build(label, clip)
    one, other = scorer(images, PROMPTS).reward_map, scorer(images, ["x y z", "qqq", "red cat"]).reward_map
    assert torch.equal(one, other) == (label in PLAIN)


@pytest.mark.parametrize("label", MAPS)
def test_batch_equals_singles(clip, images, label):
    scorer = build(label, clip)
    together = scorer(images, PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        alone = scorer(images[index : index + 1], [prompt])
        torch.testing.assert_close(alone.reward_map[0], together.reward_map[index], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.reward[0], together.reward[index])


def test_scorers_together_equal_each_alone_in_one_pass(monkeypatch, clip, images):
    scorers = [build(label, clip) for label in MAPS] + [make_scorer("clipscore", model=clip)]
    alone = [scorer(images, PROMPTS) for scorer in scorers]
    passes = []
    monkeypatch.setattr(VitTower, "run", lambda *given, run=VitTower.run: passes.append(1) or run(*given))
    together = score_together(scorers, images, PROMPTS)
    assert len(passes) == 1
    assert together[-1].reward_map is None
    for one, other in zip(alone[:-1], together[:-1]):
        torch.testing.assert_close(one.reward_map, other.reward_map, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.reward, together[-1].reward)


def test_scorers_of_two_models_share_no_pass(clip, images):
    with pytest.raises(ValueError, match="share a model"):
        score_together([build("clip_gradcam", clip), build("clip_gradcam", load_clip(make_clip()))], images, PROMPTS)


def test_eight_threads_equal_one(clip):
    scorers = [build(label, clip) for label in MAPS] * 2
    batches = torch.rand(len(scorers), 2, 3, 48, 48)
    expected = [scorer(batch, PROMPTS[:2]).reward_map for scorer, batch in zip(scorers, batches)]
    with ThreadPoolExecutor(8) as pool:
        threaded = pool.map(lambda scorer, batch: scorer(batch, PROMPTS[:2]).reward_map, scorers, batches)
        for one, other in zip(expected, threaded):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (90, 40), (40, 90), (1500, 1100)], ids=str)
@pytest.mark.parametrize("label", ["clip_gradient", "clip_gradcam", "clip_attention", "clip_decomposition"])
def test_any_size_is_scored(clip, label, size):
    torch.manual_seed(0)
    score = build(label, clip)(torch.rand(1, 3, *size), PROMPTS[:1])
    assert score.reward_map.shape == (1, *size) and score.reward.isfinite().all()
    assert score.map_valid.item() == (size != (1, 1))  # one pixel is nowhere else


def test_what_was_cropped_away_weighs_exactly_one(clip):
    scorer = Fixed(clip, torch.rand(1, 40, 40))
    score = scorer(torch.rand(1, 3, 40, 90), PROMPTS[:1])
    weights = score.reward_map[0] / score.reward_map.mean()  # token_advantages' w(x) at its full strength
    assert torch.allclose(weights[:, :25], torch.ones(40, 25), atol=1e-5)
    assert torch.allclose(weights[:, 65:], torch.ones(40, 25), atol=1e-5)
    inside = scorer._window[0]
    torch.testing.assert_close(weights[:, 25:65], inside / inside.mean())


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, float("nan")])
def test_map_without_contrast_falls_back_to_uniform_and_is_counted(clip, value):
    window = torch.rand(2, 32, 32)
    window[1] = value
    score = Fixed(clip, window)(torch.rand(2, 3, 32, 32), PROMPTS[:2])
    assert score.map_valid.tolist() == [True, False] and score.details["fallback"].tolist() == [0, 1]
    assert (score.reward_map[1] == 0.5).all() and torch.equal(score.reward_map[0], window[0])
    assert score.valid.all()


@pytest.mark.parametrize("label", MAPS)
def test_constant_image_is_scored(clip, label):
    score = build(label, clip)(torch.full((2, 3, 40, 40), 0.5), PROMPTS[:2])
    assert score.reward.isfinite().all() and score.reward_map.isfinite().all()


@pytest.fixture
def overflowing(monkeypatch):
    """Makes the embeddings of the second image of each batch, as in fp16, infinite."""

    def run(*given, original=VitTower.run):
        record = original(*given)
        record.embeds = record.embeds.index_fill(0, torch.tensor([1]), float("inf"))
        return record

    monkeypatch.setattr(VitTower, "run", run)


def test_image_whose_score_is_not_finite_is_not_valid(overflowing, clip, images):
    for name in ("clipscore", "clip_gradcam", "clip_decomposition"):
        score = make_scorer(name, model=clip)(images, PROMPTS)
        assert score.valid.tolist() == [True, False, True]
        assert score.reward_map is None or score.map_valid.tolist() == [True, False, True]
        torch.testing.assert_close(score.reward[1], score.reward[[0, 2]].mean())


def test_batch_without_a_finite_score_is_not_valid(caplog):
    model, tokenizer = make_clip()
    model.visual_projection.weight.data.fill_(float("inf"))
    score = make_scorer("clipscore", model=(model, tokenizer))(torch.rand(2, 3, 32, 32), PROMPTS[:2])
    assert not score.valid.any() and score.reward.tolist() == [0, 0]
    assert "2 of 2 CLIP scores are not finite" in caplog.text


@pytest.mark.parametrize("label", ["clip_gradcam", "clip_gradient"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_images_are_scored_as_their_fp32_selves(clip, images, label, dtype):
    images = images.to(dtype)
    one, other = build(label, clip)(images, PROMPTS), build(label, clip)(images.float(), PROMPTS)
    assert torch.equal(one.reward_map, other.reward_map) and one.reward_map.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "options"),
    [("clip_gradient", {"blur_sigma": 2.0}), ("clip_gradcam", {}), ("clip_attention", {"rollout": True})],
)
def test_map_is_the_same_under_autocast(clip, images, name, options):
    scorer = make_scorer(name, model=clip, **options)
    expected = scorer(images, PROMPTS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scorer(images, PROMPTS).reward_map, expected.reward_map)


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (torch.full((1, 3, 8, 8), float("nan")), ["a"], "NaN"),
        (torch.rand(1, 3, 8, 8) * 255, ["a"], r"\[0, 1\]"),
        (torch.rand(2, 3, 8, 8), ["a"], "one per image"),
        (torch.rand(0, 3, 8, 8), [], "at least one pixel"),
    ],
)
@pytest.mark.parametrize("name", ["clipscore", "clip_gradcam"])
def test_bad_input_is_refused(clip, name, images, prompts, message):
    with pytest.raises(ValueError, match=message):
        make_scorer(name, model=clip)(images, prompts)


@pytest.mark.parametrize("divisor", [0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["clipscore", "clip_gradcam"])
def test_bad_divisor_is_refused(clip, name, divisor):
    with pytest.raises(ValueError, match="logit_divisor must be (positive|a number)"):
        make_scorer(name, model=clip, logit_divisor=divisor)


def test_prompt_that_is_too_long_is_counted(clip, images):
    score = build("clip_gradcam", clip)(images, ["a" * 100, "a", ""])
    assert score.details["truncated"].tolist() == [1, 0, 0]


def test_multi_score_takes_maps_and_scores_by_name(clip, images):
    names = {"clipscore": 0.5, "clip_gradcam": 0.3, "clip_decomposition": 0.2}
    details, extras = multi_score("cpu", names, {name: {"model": clip} for name in names})(images, PROMPTS)
    torch.testing.assert_close(details["avg"], details["clipscore"])
    assert set(extras["maps"]) == {"clip_gradcam", "clip_decomposition"}
    assert extras["maps"]["clip_gradcam"]["map_kind"] == "importance"
