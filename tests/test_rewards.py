import sys
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch

from flow_grpo.clip.load import load_clip
from flow_grpo.clip.model import ClipModel
from flow_grpo.rewards import WeightedScorers, make_scorers, multi_score
from flow_grpo.score import PromptErrors, Score
from flow_grpo.scorers import make_scorer
from flow_grpo.text_maps.engine import TextLine
from tests.clip_models import make_clip

IMAGES = torch.rand(2, 3, 16, 16)
PROMPTS = ['a sign that says "HUT"', 'a sign that says "HAT"']


def read_hut(image):
    return [TextLine([[2, 2], [12, 2], [12, 8], [2, 8]], "HUT", 0.9)]


ENGINE = {"engine": read_hut}
# The same scorer under its path, so that two scorers with maps stand side by side.
OCR_MAP_PATH = "flow_grpo.ocr_map_scorer:OcrMapScorer"


def test_average_is_the_weighted_sum():
    score = multi_score("cpu", {"ocr": 2.0, "ocr_map": 0.5}, {"ocr": ENGINE, "ocr_map": ENGINE})
    details, _ = score(IMAGES, PROMPTS, [{}, {}])
    assert set(details) == {"ocr", "ocr_map", "avg"}
    torch.testing.assert_close(details["ocr"], torch.tensor([1, 2 / 3]))
    torch.testing.assert_close(details["ocr_map"], torch.tensor([0.9, 0.6]))
    torch.testing.assert_close(details["avg"], 2 * details["ocr"] + 0.5 * details["ocr_map"])


def test_only_map_stands_at_the_top_and_by_its_name():
    score = multi_score("cpu", {"ocr": 1.0, "ocr_map": 1.0}, {"ocr": ENGINE, "ocr_map": ENGINE})
    _, extras = score(IMAGES, PROMPTS, None, only_strict=False)
    assert set(extras["maps"]) == {"ocr_map"}
    assert extras["reward_map"] is extras["maps"]["ocr_map"]["reward_map"]
    assert extras["reward_map"].shape == (2, 16, 16)
    assert extras["map_kind"] == extras["maps"]["ocr_map"]["map_kind"] == "reward"
    assert extras["map_valid"].tolist() == extras["maps"]["ocr_map"]["map_valid"].tolist() == [True, True]


def test_several_maps_stand_by_name_alone():
    score = multi_score(
        "cpu", {"ocr_map": 1.0, OCR_MAP_PATH: 1.0}, {"ocr_map": ENGINE, OCR_MAP_PATH: ENGINE | {"reward_bg": 0.25}}
    )
    _, extras = score(IMAGES, PROMPTS)
    assert set(extras["maps"]) == {"ocr_map", OCR_MAP_PATH}
    assert (extras["maps"]["ocr_map"]["reward_map"][:, 12:] == 0.5).all()
    assert (extras["maps"][OCR_MAP_PATH]["reward_map"][:, 12:] == 0.25).all()
    assert extras["reward_map"] is None and extras["map_kind"] is None and extras["map_valid"] is None


def test_without_any_map_there_is_none():
    _, extras = multi_score("cpu", {"ocr": 1.0}, {"ocr": ENGINE})(IMAGES, PROMPTS)
    assert extras["maps"] == {} and extras["reward_map"] is None


def test_what_scorers_measure_stands_under_scorer_and_quantity():
    score = multi_score("cpu", {"ocr": 1.0, "ocr_map": 1.0}, {"ocr": ENGINE, "ocr_map": ENGINE})
    measured = score(IMAGES, PROMPTS)[1]["details"]
    assert measured["ocr_map/exact"].tolist() == [1, 0] and measured["ocr/exact"].tolist() == [1, 0]
    assert measured["ocr_map/num_lines"].tolist() == [1, 1]


def test_default_engine_scores_drawn_text(draw_text):
    details, extras = multi_score("cpu", {"ocr_map": 1.0})(draw_text("HUT")[None], PROMPTS[:1], [{}])
    assert details["avg"].item() > 0.9 and extras["map_valid"].all()


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({}, None, "at least one scorer"),
        ({"ocr": float("nan")}, None, "weight of scorer 'ocr'"),
        ({"ocr": "1"}, None, "weight of scorer 'ocr' must be a finite number, got '1'"),
        ({"ocrr": 1.0}, None, "unknown scorer 'ocrr'"),
        ({"ocr": 1.0}, {"ocr_map": {}}, "options for ocr_map"),
        ({"ocr": 1.0}, {"ocr": {"sigma": 1}}, "scorer 'ocr' does not take sigma"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_scored(weights, options, message):
    with pytest.raises(ValueError, match=message):
        multi_score("cpu", weights, options)


def test_prompt_without_target_is_refused():
    with pytest.raises(ValueError, match="no quoted text"):
        multi_score("cpu", {"ocr_map": 1.0}, {"ocr_map": ENGINE})(IMAGES, ["a red circle"] * 2)


def test_submitted_scores_are_those_of_the_call():
    scorers = make_scorers("cpu", {"ocr": 2.0, "ocr_map": 0.5}, {"ocr": ENGINE, "ocr_map": ENGINE})
    scores, later = scorers(IMAGES, PROMPTS), scorers.submit(IMAGES, PROMPTS)
    assert list(later) == list(scores) == ["ocr", "ocr_map"]
    for name, future in later.items():
        assert torch.equal(future.result().reward, scores[name].reward)
    assert torch.equal(later["ocr_map"].result().reward_map, scores["ocr_map"].reward_map)


def test_scorers_with_workers_begin_before_the_others_run():
    events, answer = [], Future()

    class Remote:
        def submit(self, images, prompts, metadata=None):
            events.append("begun")
            return answer

    def local(images, prompts, metadata=None):
        events.append("run")
        return Score(images.mean((1, 2, 3)))

    scorers = WeightedScorers({"local": local, "remote": Remote()}, {"local": 1.0, "remote": 1.0})
    futures = scorers.submit(IMAGES, PROMPTS)
    assert events == ["begun", "run"]
    assert futures["local"].done() and not futures["remote"].done()
    answer.set_result(Score(torch.ones(2)))
    assert futures["remote"].result().reward.tolist() == [1, 1]


def test_image_is_valid_where_every_scorer_could_score_it(monkeypatch):
    def scorer(*valid):
        return lambda: lambda images, prompts, metadata=None: Score(torch.zeros(2), valid=torch.tensor(valid))

    module = SimpleNamespace(first=scorer(True, False), second=scorer(True, True))
    monkeypatch.setitem(sys.modules, "own_scorers", module)
    score = multi_score("cpu", {"own_scorers:first": 1.0, "own_scorers:second": 1.0})
    assert score(IMAGES, PROMPTS)[1]["valid"].tolist() == [True, False]


def test_scorers_of_one_clip_model_share_a_pass_and_score_as_alone(monkeypatch):
    names = ("clip_gradcam", "clipscore", "clip_attention")
    shared, own = {"model": load_clip(make_clip())}, {name: {"model": load_clip(make_clip())} for name in names}
    score = multi_score("cpu", dict.fromkeys(names, 1.0), dict.fromkeys(names, shared))
    trace, passes = ClipModel.trace, []
    monkeypatch.setattr(ClipModel, "trace", lambda *arguments: passes.append(arguments) or trace(*arguments))
    details, extras = score(IMAGES, PROMPTS)
    assert len(passes) == 1
    for name in names:
        alone = make_scorer(name, **shared)(IMAGES, PROMPTS)
        torch.testing.assert_close(details[name], alone.reward)
        if alone.reward_map is not None:
            torch.testing.assert_close(extras["maps"][name]["reward_map"], alone.reward_map)
    passes.clear()
    apart = multi_score("cpu", dict.fromkeys(names, 1.0), own)
    apart(IMAGES, PROMPTS)
    assert len(passes) == 3


class Plain:
    """A scorer of a user's own, whose attribute `clip` is no business of ours."""

    clip = "a shared setting"

    def __init__(self, value, map_size=None):
        self.value, self.map_size = value, map_size

    def __call__(self, images, prompts, metadata=None):
        maps = None if self.map_size is None else torch.zeros(len(images), *self.map_size)
        return Score(torch.full((len(images),), self.value), maps, None if maps is None else "reward")


def test_scorers_of_a_users_own_may_share_an_attribute_named_clip():
    scores = WeightedScorers({"one": Plain(1.0), "two": Plain(2.0)}, {"one": 1, "two": 1})(IMAGES, PROMPTS)
    assert scores["one"].reward.tolist() == [1, 1] and scores["two"].reward.tolist() == [2, 2]


def test_map_of_another_size_than_the_images_is_refused_by_the_scorers_name():
    scorers = WeightedScorers({"small": Plain(1.0, map_size=(8, 8))}, {"small": 1})
    with pytest.raises(RuntimeError, match="scorer 'small' gave a map of 8 x 8 pixels for images of 16 x 16; resize"):
        scorers(IMAGES, PROMPTS)
    assert WeightedScorers({"fit": Plain(1.0, map_size=(16, 16))}, {"fit": 1})(IMAGES, PROMPTS)


def test_rewards_on_another_device_than_the_images_are_refused_by_the_scorers_name():
    score = Score(torch.ones(2))
    object.__setattr__(score, "reward", torch.ones(2, device="meta"))
    scorers = WeightedScorers({"far": lambda *batch: score}, {"far": 1.0})
    with pytest.raises(RuntimeError, match="scorer 'far' gave rewards on meta for images on cpu; move them"):
        scorers(torch.rand(2, 3, 16, 16), ["a", "b"])


def test_prompts_are_checked_by_each_scorer_that_can():
    scorers = make_scorers("cpu", {"ocr": 1.0, "jpeg_compressibility": 1.0}, {"ocr": ENGINE})
    scorers.check_prompts(PROMPTS)
    with pytest.raises(PromptErrors, match="ocr: the prompt has no quoted text") as error:
        scorers.check_prompts([*PROMPTS, "a hut"], [{}] * 3)
    assert list(error.value.faults) == [2]
