import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flow_grpo.ocr_scorer import OcrScorer, text_accuracy
from flow_grpo.score import PromptErrors
from flow_grpo.text_maps.engine import TextLine

PROMPT = 'a sign that says "Big Hut"'
QUAD = [[0, 0], [8, 0], [8, 4], [0, 4]]


def score_of(*read, prompt=PROMPT, metadata=None):
    """The reward for an image in which (text, confidence) lines are read."""
    scorer = OcrScorer(lambda image: [TextLine(QUAD, text, confidence) for text, confidence in read])
    return scorer(torch.rand(1, 3, 8, 8), [prompt], metadata)


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("bighut", "bighut", 1),
        ("thebighutonahill", "bighut", 1),  # found inside: what stands around it costs nothing
        ("bighat", "bighut", 5 / 6),
        ("", "bighut", 0),
        ("somethingelsealtogether", "bighut", 0),  # never below 0
    ],
)
def test_text_accuracy_by_hand(text, target, expected):
    assert text_accuracy(text, target) == pytest.approx(expected)


@given(st.text("abc", max_size=8), st.text("abc", min_size=1, max_size=8))
def test_text_accuracy_is_bounded_and_one_for_a_target_that_is_there(text, target):
    assert 0 <= text_accuracy(text, target) <= 1
    assert (text_accuracy(text, target) == 1) == (target in text)


def test_lines_are_joined_without_spaces_in_lower_case():
    score = score_of(("BIG ", 0.9), ("hut", 0.2))
    assert score.reward.tolist() == [1] and score.details["exact"].tolist() == [1]


def test_found_inside_other_text_is_right_but_not_exact():
    score = score_of(("the big hut", 0.9))
    assert score.reward.tolist() == [1] and score.details["exact"].tolist() == [0]


def test_lines_without_confidence_are_not_read():
    assert score_of(("big", 0.9), ("hut", 0.0)).reward.item() == pytest.approx(0.5)


def test_several_targets_give_the_mean():
    assert score_of(("one", 1.0), prompt='says "ONE" and "SIX"').reward.item() == pytest.approx((1 + 0) / 2)
    assert score_of(("one", 1.0), metadata=[{"targets": ["One"]}]).reward.item() == 1


def test_there_is_no_map():
    score = score_of(("big hut", 0.9))
    assert score.reward_map is None and score.map_kind is None and not score.map_valid.any()


def test_drawn_text_is_scored_by_the_real_engine(rapidocr_engine, draw_text):
    images = torch.stack([draw_text("HUT"), draw_text("HAT"), torch.ones(3, 64, 64)])
    score = OcrScorer(rapidocr_engine)(images, ['a sign that says "HUT"'] * 3)
    assert score.reward.tolist() == pytest.approx([1, 2 / 3, 0])
    assert score.details["exact"].tolist() == [1, 0, 0]


def test_image_that_cannot_be_read_is_not_valid_and_takes_the_mean_of_the_others():
    def engine(image):
        if image.max() == 0:
            raise OSError("bad crop")
        return [TextLine(QUAD, "bighut" if image.min() == 255 else "bighat", 0.9)]

    images = torch.stack([torch.full((3, 8, 8), level) for level in (1.0, 0.0, 0.6)])
    score = OcrScorer(engine)(images, [PROMPT] * 3)
    assert score.valid.tolist() == [True, False, True] and not score.map_valid.any()
    assert score.reward.tolist() == pytest.approx([1, 11 / 12, 5 / 6])
    assert score.details["exact"].tolist() == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batch_without_a_readable_image_is_marked_invalid(batch_size):
    def engine(image):
        raise OSError("session lost")

    score = OcrScorer(engine)(torch.rand(batch_size, 3, 8, 8), [PROMPT] * batch_size)
    assert not score.valid.any() and not score.map_valid.any() and score.reward.tolist() == [0] * batch_size


def test_prompts_of_a_data_set_are_checked_together():
    scorer = OcrScorer(lambda image: [])
    prompts = [PROMPT, "a red circle", 'a "SALE" and "OPEN', "a hut"]
    with pytest.raises(PromptErrors, match="3 of 4 prompts cannot be scored: prompt 1: .* no quoted text") as error:
        scorer.check_prompts(prompts)
    assert list(error.value.faults) == [1, 2, 3] and "cannot be paired" in error.value.faults[2]
    scorer.check_prompts(prompts, [{"targets": ["HUT"]}] * 4)


def test_submitted_images_are_scored_when_asked_for(rapidocr_engine, draw_text):
    images = draw_text("HUT")[None]
    finish = OcrScorer(rapidocr_engine).submit(images, ['a sign that says "HUT"'])
    images.zero_()  # the caller's again
    assert finish.result().reward.tolist() == [1]


def test_engine_options_reach_an_engine_by_its_name():
    with pytest.raises(ValueError, match="'rapidocr' has no option weights"):
        OcrScorer("rapidocr", engine_options={"weights": "here"})


def test_normalisation_is_an_option():
    images, prompts = torch.rand(1, 3, 8, 8), ['says "Don’t"']
    read = [TextLine(QUAD, "DON'T", 0.9)]
    assert OcrScorer(lambda image: read)(images, prompts).reward.item() == pytest.approx(4 / 5)
    assert OcrScorer(lambda image: read, normalisation="unicode")(images, prompts).reward.item() == 1
    with pytest.raises(ValueError, match="normalisation"):
        OcrScorer(lambda image: read, normalisation="upper")


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no quoted text"):
        score_of(prompt="a red circle")
    with pytest.raises(ValueError, match="prompts must be one per image"):
        OcrScorer(lambda image: [])(torch.rand(2, 3, 8, 8), [PROMPT])
