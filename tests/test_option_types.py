import numpy as np
import pytest

from flow_grpo.ocr_map_scorer import OcrMapScorer
from flow_grpo.option_types import checked_options
from flow_grpo.scorers import make_scorer
from flow_grpo.text_maps.engine import make_engine

TINY_CLIP = "models/tiny-clip"


@pytest.mark.parametrize("value", ["0.2", None, [0.2], True, float("nan"), 1j], ids=repr)
def test_what_is_no_number_is_refused_with_the_option_what_it_got_and_its_default(value):
    with pytest.raises(ValueError) as error:
        OcrMapScorer(lambda image: [], mask_sigma=value)
    said = f"OcrMapScorer: mask_sigma must be a number, got {value!r} ({type(value).__name__}); its default is 0.125"
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("ocr", {"num_workers": "2"}, "num_workers must be a whole number, got '2'"),
        ("ocr_map", {"num_workers": 1.5}, "num_workers must be a whole number, got 1.5"),
        ("ocr_map", {"per_character": "False"}, "per_character must be True or False, got 'False'"),
        ("ocr_map", {"engine_options": "max_side"}, "engine_options must be a mapping of names to values or None"),
        ("ocr_map", {"engine_options": {"max_side": "960"}}, "max_side must be a whole number, got '960'"),
        ("ocr_map", {"engine_options": {"num_workers": 2}}, "'rapidocr' has no option num_workers"),
        ("ocr_map", {"engine": ["rapidocr"]}, "unknown OCR engine"),
        ("clipscore", {"model": TINY_CLIP, "logit_divisor": "30"}, "logit_divisor must be a number, got '30'"),
        ("clip_attention", {"model": TINY_CLIP, "rollout": 1}, "rollout must be True or False, got 1"),
        ("clip_decomposition", {"model": TINY_CLIP, "logit_divisor": None}, "logit_divisor must be a number, got None"),
        ("clip_gradcam", {"model": TINY_CLIP, "block": "-1"}, "block must be a whole number, got '-1'"),
        ("clip_gradient", {"model": TINY_CLIP, "quantiles": 0.5}, r"quantiles must be \(a number, a number\), got 0.5"),
        (
            "clip_gradient",
            {"model": TINY_CLIP, "quantiles": [0.1]},
            r"quantiles must be \(a number, a number\), got \[",
        ),
        ("pickscore", {"logit_divisor": "26"}, "logit_divisor must be a number, got '26'"),
        ("remote:http://127.0.0.1:1", {"timeout": "60"}, "timeout must be a number, got '60'"),
        ("remote:http://127.0.0.1:1", {"retries": 0.5}, "retries must be a whole number, got 0.5"),
    ],
)
def test_every_scorer_refuses_options_of_a_wrong_type(name, options, says):
    with pytest.raises(ValueError, match=says):
        make_scorer(name, **options)


def test_an_engine_refuses_options_of_a_wrong_type():
    with pytest.raises(ValueError, match="RapidOcr: characters must be True or False, got 'no'"):
        make_engine("rapidocr", characters="no")


def test_numbers_of_other_libraries_and_lists_from_json_are_taken():
    @checked_options
    def function(share: float, number: int = 1, pair: tuple[float, float] = (0, 1), limit: float | None = None):
        return share, number, pair, limit

    given = (np.float32(0.5), np.int64(3), [0.25, 1], 7)
    assert function(*given[:2], pair=given[2], limit=given[3]) == given
    assert function(1) == (1, 1, (0, 1), None)
    with pytest.raises(ValueError, match="limit must be a number or None, got 'x'"):
        function(1, limit="x")
    with pytest.raises(TypeError, match="share"):
        function()
