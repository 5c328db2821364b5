import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from config.command_line import parse
from config.validation import resolve
from flow_grpo.rewards import make_scorers
from flow_grpo.score import Score
from flow_grpo.scorers import _SCORERS, as_reward_fn, make_scorer, scorer_names
from flow_grpo.text_maps.engine import TextLine

IMAGES = torch.rand(2, 3, 16, 16)
PROMPTS = ['a sign that says "HUT"', 'a sign that says "HAT"']


def read_hut(image):
    return [TextLine([[2, 2], [12, 2], [12, 8], [2, 8]], "HUT", 1.0)]


def test_names_of_a_command_line_stand_between_commas_or_blanks():
    assert scorer_names(["ocr_map, clip_gradcam", "a:b,", "jpeg_compressibility"]) == [
        "ocr_map",
        "clip_gradcam",
        "a:b",
        "jpeg_compressibility",
    ]


def test_a_variant_in_a_name_is_refused_with_the_scorer_that_it_means():
    with pytest.raises(ValueError, match="the name is clip_attention, and its variants are options of it"):
        make_scorer("clip_attention:rollout")


@pytest.fixture
def brightness_module(monkeypatch):
    """A module of somebody's own, `own_scorers`, with a factory for each shape a factory may have."""

    def brightness(device, scale=1.0):
        def scorer(images, prompts, metadata=None):
            return Score(
                reward=images.mean((1, 2, 3)) * scale,
                details={"device_is_meta": images[:, 0, 0, 0] * (device == "meta")},
            )

        return scorer

    def sloppy(share: float = None, flag: "bool" = False):
        return print

    module = SimpleNamespace(
        brightness=brightness,
        anything=lambda **options: partial(print, options),
        nothing=lambda: print,
        a_tuple=lambda: (print, "and more"),
        itself=lambda images, prompts, metadata=None: Score(reward=images.mean((1, 2, 3))),
        demanding=lambda model: print,
        sloppy=sloppy,
    )
    monkeypatch.setitem(sys.modules, "own_scorers", module)


def test_registered_names_build_scorers():
    for name in ("ocr", "ocr_map"):
        score = make_scorer(name, engine=read_hut)(IMAGES, PROMPTS)
        torch.testing.assert_close(score.reward, torch.tensor([1, 2 / 3]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ocr", {"engine": read_hut}),
        ("ocr_map", {"engine": read_hut}),
        ("ocr_map", {"per_character": True}),
        ("jpeg_compressibility", {}),
        ("clip_gradient", {"model": "models/tiny-clip", "blur_sigma": 1.0}),
    ],
)
def test_scores_do_not_depend_on_torchs_default_dtype(draw_text, name, options):
    """A run that loads its model by set_default_dtype(float16) gets the same scores."""
    scorer, images = make_scorer(name, **options), torch.stack([draw_text("HUT"), draw_text("HOT")])
    expected = scorer(images, PROMPTS)
    torch.set_default_dtype(torch.float16)
    try:
        score = scorer(images, PROMPTS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(score.reward, expected.reward) and score.reward.dtype == torch.float32
    assert all(torch.equal(score.details[key], values) for key, values in expected.details.items())
    assert expected.reward_map is None or torch.equal(score.reward_map, expected.reward_map)


def test_rapidocr_is_the_default_engine(draw_text):
    assert make_scorer("ocr")(draw_text("HUT")[None], PROMPTS[:1]).reward.item() == 1


def test_options_reach_the_scorer():
    score = make_scorer("ocr_map", engine=read_hut, reward_bg=0.25)(IMAGES, PROMPTS)
    assert (score.reward_map[:, 12:] == 0.25).all()


def test_path_of_a_factory_is_a_name_too(brightness_module):
    score = make_scorer("own_scorers:brightness", device="meta", scale=0.5)(IMAGES, PROMPTS)
    torch.testing.assert_close(score.reward, IMAGES.mean((1, 2, 3)) / 2)
    assert torch.equal(score.details["device_is_meta"], IMAGES[:, 0, 0, 0])


def test_a_scorer_is_added_by_one_file_and_one_row(tmp_path, monkeypatch):
    """The tutorial's scorer, as CONTRIBUTING.md says: a file in flow_grpo/ with relative imports, and its row."""
    page = Path("docs/tutorials/own-scorer.md").read_text(encoding="utf-8")
    (code,) = re.findall(r'^```python title="my_scorers.py"\n(.*?)^```$', page, re.M | re.S)
    (tmp_path / "flow_grpo").mkdir()
    (tmp_path / "flow_grpo/my_scorer.py").write_text(code.replace("from flow_grpo.score", "from .score"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(_SCORERS, "red", ".my_scorer:RedScorer")
    fields = parse(["--config", "config/grpo.py:tiny_ocr_map", '--config.rewards={"red": 1.0}'])
    config, _ = resolve(fields, num_processes=1)
    scorers = make_scorers("cpu", config.rewards.to_dict(), config.reward_options.to_dict())
    red, green, blue = IMAGES.unbind(1)
    torch.testing.assert_close(scorers(IMAGES, PROMPTS)["red"].reward_map, 0.5 + 0.5 * (red - (green + blue) / 2))
    with pytest.raises(ValueError, match="known: .*pickscore, red,"):
        make_scorer("rad")
    sys.modules.pop("flow_grpo.my_scorer")


def test_device_goes_to_factories_that_take_one(brightness_module):
    assert make_scorer("own_scorers:anything", device="meta", a=1).args == ({"a": 1, "device": "meta"},)
    assert make_scorer("own_scorers:nothing", device="meta") is print


def test_what_is_no_factory_of_a_scorer_is_refused_with_the_remedy(brightness_module):
    with pytest.raises(ValueError, match="'own_scorers:itself' is a scorer itself; name a class, or a function"):
        make_scorer("own_scorers:itself")
    with pytest.raises(ValueError, match="returned tuple, which cannot be called; return an object that takes"):
        make_scorer("own_scorers:a_tuple")
    with pytest.raises(ValueError, match="'own_scorers:demanding' needs the option model"):
        make_scorer("own_scorers:demanding")


@pytest.mark.parametrize("name", ["clip", "", ":", "ocr:", ":OcrScorer", None, 3])
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"known: .*ocr, ocr_map.*package\.module:factory"):
        make_scorer(name)


def test_module_without_the_factory_is_refused(brightness_module):
    with pytest.raises(ValueError, match="own_scorers has no darkness"):
        make_scorer("own_scorers:darkness")


@pytest.mark.parametrize("name", ["no_such_module:factory", "flow_grpo.no_such:factory", "own_scorers.inner:factory"])
def test_module_that_is_not_there_is_refused_with_where_to_put_it(brightness_module, name):
    with pytest.raises(ValueError, match=f"no module {name.partition(':')[0]}.*Python's search path"):
        make_scorer(name)


def test_module_that_lacks_an_import_of_its_own_raises_that(tmp_path, monkeypatch):
    (tmp_path / "lacking_scorers.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        make_scorer("lacking_scorers:factory")


@pytest.mark.parametrize("name", ["math:pi", "builtins:dict"])
def test_what_has_no_signature_is_refused_by_the_scorers_name(name):
    with pytest.raises(ValueError, match=f"{name}.*name a class, or a function"):
        make_scorer(name)


def test_unknown_option_names_the_scorer_and_what_it_takes():
    with pytest.raises(ValueError, match="scorer 'ocr_map' does not take blur; it takes engine, reward_bg, mask_sigma"):
        make_scorer("ocr_map", blur=3)


def test_an_option_of_ones_own_scorer_is_of_the_type_that_its_factory_names(brightness_module):
    with pytest.raises(ValueError, match="scorer 'own_scorers:sloppy': share must be a number, got '0.5'"):
        make_scorer("own_scorers:sloppy", share="0.5")
    assert make_scorer("own_scorers:sloppy", share=None, flag="a kind that is only named") is print


def test_reward_fn_gives_scores_and_the_map():
    scorer = make_scorer("ocr_map", engine=read_hut)
    score = scorer(IMAGES, PROMPTS)
    scores, extras = as_reward_fn(scorer)(IMAGES, PROMPTS, [{}, {}])
    assert torch.equal(scores, score.reward) and torch.equal(extras["reward_map"], score.reward_map)
    assert extras["map_kind"] == "reward" and extras["map_valid"].tolist() == [True, True]
    assert extras["details"]["exact"].tolist() == [1, 0]


def test_reward_fn_of_a_scorer_without_map_says_so():
    _, extras = as_reward_fn(make_scorer("ocr", engine=read_hut))(IMAGES, PROMPTS)
    assert extras["reward_map"] is None and extras["map_kind"] is None and not extras["map_valid"].any()
