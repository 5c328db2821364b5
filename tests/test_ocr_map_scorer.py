import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from flow_grpo.ocr_map_scorer import OcrMapScorer
from flow_grpo.reward_map import gaussian_blur, pool_to_tokens
from flow_grpo.score import PromptErrors
from flow_grpo.text_maps.engine import Character, TextLine

PROMPT = 'a sign that says "HUT"'
NEUTRAL = 0.5


def box(left, top, right, bottom):
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=np.float32)


def engine_reading(*lines):
    """An engine that reads the same lines in every image."""
    return lambda image: list(lines)


def score_of(*lines, prompt=PROMPT, size=(32, 64), **options):
    """The score of an image in which these lines are read."""
    return OcrMapScorer(engine_reading(*lines), **options)(torch.rand(1, 3, *size), [prompt])


def test_right_text_is_praised_and_wrong_text_blamed_where_it_stands(rapidocr_engine, draw_text):
    images = torch.stack([draw_text("HUT", (32, 16)), draw_text("BOX", (32, 16)), draw_text("HAT", (32, 16))])
    score = OcrMapScorer(rapidocr_engine)(images, [PROMPT] * 3)
    assert score.map_kind == "reward" and score.map_valid.all()
    assert score.reward[0] > 0.9 and score.reward[1] < 0.1 and 0.5 < score.reward[2] < 0.7
    assert score.details["exact"].tolist() == [1, 0, 0]
    assert score.details["num_lines"].tolist() == [1, 1, 1]
    assert score.read[0] == "HUT"
    assert ((0.1 < score.details["text_area"]) & (score.details["text_area"] < 0.6)).all()
    middle = score.reward_map[:, 16, 32]
    torch.testing.assert_close(middle, score.reward, rtol=0, atol=1e-2)  # the box's own middle is a pixel or two away
    assert (score.reward_map[:, 56:] == NEUTRAL).all()


def test_two_readers_that_disagree_give_two_numbers(rapidocr_engine, draw_text):
    """Blurred text that only the first reads, and faint text that only the second reads."""
    blurred = gaussian_blur(draw_text("NORTH", font_size=12.8), 2.5)
    faint = 0.5 + (draw_text("GARDEN", font_size=12.8) - 0.5) * 0.04
    images, prompts = torch.stack([blurred, faint]), ['a sign that says "NORTH"', 'a sign that says "GARDEN"']
    first, second = (OcrMapScorer(engine)(images, prompts) for engine in (rapidocr_engine, "ppocrv4"))
    assert first.reward[0] > 0.9 and second.reward[0] < 0.1
    assert first.reward[1] < 0.1 and second.reward[1] > 0.4
    assert first.read[0] == "NORTH" and first.read[1] == ""


def test_pixels_of_the_text_reach_its_tokens(rapidocr_engine, draw_text):
    score = OcrMapScorer(rapidocr_engine)(draw_text("HUT", (24, 10), font_size=16)[None], [PROMPT])
    tokens = pool_to_tokens(score.reward_map, (2, 2))[0]
    assert tokens[0] == tokens.max() > 0.7
    torch.testing.assert_close(
        tokens[2:], torch.full((2,), NEUTRAL), rtol=0, atol=1e-2
    )  # the soft edge may reach there


@pytest.mark.parametrize(
    "image",
    [torch.zeros(3, 64, 64), torch.ones(3, 64, 64), torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))],
    ids=["black", "blank", "noise"],
)
def test_image_without_text_has_no_reward_and_a_constant_map_below_all_others(rapidocr_engine, image):
    score = OcrMapScorer(rapidocr_engine)(image[None], [PROMPT])
    assert score.reward.tolist() == [0] and score.map_valid.tolist() == [True]
    assert (score.reward_map == 0).all()
    assert score.details.pop("missing").tolist() == [1]
    assert all(values.tolist() == [0] for values in score.details.values())
    score = OcrMapScorer(rapidocr_engine, missing_penalty=0.0)(image[None], [PROMPT])
    assert (score.reward_map == NEUTRAL).all()


# a similarity of 1/4, 1/2 and 1
@pytest.mark.parametrize(
    ("garbled", "half_right", "right"), [("XOWT", "ROXT", "ROOF"), ("BEL", "BEKL", "BAKE"), ("SEEN", "SNUB", "SNOW")]
)
@pytest.mark.parametrize("font_size", [16, 24])
def test_drawn_text_is_worth_more_the_righter_it_is(rapidocr_engine, draw_text, garbled, half_right, right, font_size):
    images = [torch.ones(3, 96, 96)] + [
        draw_text(t, font_size=font_size, size=96) for t in (garbled, half_right, right)
    ]
    score = OcrMapScorer(rapidocr_engine)(torch.stack(images), [f'a sign that says "{right}"'] * 4)
    assert score.details["num_lines"].tolist() == [0, 1, 1, 1]
    assert (score.reward.diff() > 0).all(), score.reward
    assert (score.reward_map.mean(dim=(1, 2)).diff() > 0).all(), score.reward_map.mean(dim=(1, 2))


@pytest.mark.parametrize(
    "area", [(2, 2, 10, 6), (8, 8, 56, 24), (-9, -9, 90, 40)], ids=["small", "large", "whole image"]
)
@pytest.mark.parametrize("confidence", [0.6, 0.9, 1.0])
def test_map_and_reward_agree_on_the_order_of_text(area, confidence):
    """None, then text of 1 to 10 right letters of ten: however large the box is, it goes up with every letter."""
    target = "ABCDEFGHIJ"
    prompt = f'says "{target}"'
    scores = [score_of(prompt=prompt)]
    scores += [
        score_of(TextLine(box(*area), target[:right] + "x" * (10 - right), confidence), prompt=prompt)
        for right in range(1, 11)
    ]
    assert (torch.cat([score.reward for score in scores]).diff() > 0).all()
    assert (torch.stack([score.reward_map.double().mean() for score in scores]).diff() > 0).all()


def test_missing_targets_lower_the_background_by_their_share():
    line, prompt = TextLine(box(8, 8, 24, 16), "ONE", 1.0), 'says "ONE" and "SIX"'
    for penalty in (0.0, 0.5, 1.0):
        score = score_of(line, prompt=prompt, missing_penalty=penalty)
        assert score.reward_map[0, 28, 60].item() == pytest.approx(NEUTRAL * (1 - penalty / 2))
        assert score.reward_map[0, 12, 16].item() == pytest.approx(1, abs=1e-3) and score.reward.item() == 0.5
    assert score.details["missing"].tolist() == [0.5]


def test_failed_attempt_is_blamed_and_the_background_beside_it_is_not():
    line, prompt = TextLine(box(8, 8, 24, 16), "OXX", 1.0), 'says "ONE" and "SIX"'
    score = score_of(line, prompt=prompt)
    assert score.reward_map[0, 28, 60] == NEUTRAL and score.details["missing"].tolist() == [0.5]
    assert score.reward_map[0, 12, 16].item() == pytest.approx(1 / 3, abs=1e-3)


def test_neutral_of_the_map_is_its_background():
    assert score_of(reward_bg=0.3).neutral == 0.3 and score_of().neutral == NEUTRAL


def test_repeated_attempts_do_not_pay_in_the_reward_or_in_the_map():
    once = TextLine(box(4, 4, 28, 12), "HUT", 1.0)
    five = [once, *(TextLine(box(x, y, x + 24, y + 8), "HUT", 1.0) for x, y in ((36, 4), (36, 18), (4, 18), (68, 4)))]
    alone, together = score_of(once, size=(32, 128)), score_of(*five, size=(32, 128))
    assert together.reward.item() == pytest.approx(1 - 0.75 * 4 / 5) and alone.reward.item() == 1
    assert together.reward_map.mean() < alone.reward_map.mean()
    assert together.reward_map[0, 22, 48].item() == pytest.approx(NEUTRAL * (1 - 0.75), abs=1e-3)
    assert score_of(*five, size=(32, 128), repeat_penalty=0.0).reward.item() == 1


def test_garbled_text_is_blamed_at_its_place_and_not_in_the_background():
    score = score_of(TextLine(box(8, 8, 24, 16), "QXT", 0.9))
    assert score.details["missing"].tolist() == [0] and score.reward_map[0, 28, 60] == NEUTRAL
    assert score.reward_map[0, 12, 16].item() == pytest.approx(0.3, abs=1e-3)


def test_extra_text_is_not_seen_or_lies_below_the_background():
    right, extra = TextLine(box(4, 4, 28, 12), "HUT", 1.0), TextLine(box(4, 18, 28, 26), "SPAM", 1.0)
    score = score_of(right, extra)
    assert torch.equal(score.reward_map, score_of(right).reward_map) and score.details["num_lines"].item() == 2
    for penalty in (0.4, 1.0):
        penalised = score_of(right, extra, extra_penalty=penalty)
        assert penalised.reward_map[0, 22, 16].item() == pytest.approx(NEUTRAL * (1 - penalty), abs=1e-3)
        assert penalised.reward_map[0, 8, 16].item() == pytest.approx(1, abs=1e-3)
        assert penalised.reward.item() == 1


def test_target_in_two_lines_is_right_in_both(rapidocr_engine, draw_text):
    image = torch.minimum(draw_text("SPRING", (64, 40), size=128), draw_text("2024", (64, 90), size=128))
    score = OcrMapScorer(rapidocr_engine)(image[None], ['a poster displaying "Spring 2024" in black'])
    assert score.details["exact"].tolist() == [1] and score.reward.item() > 0.9
    assert score.reward_map[0, 40, 64] > 0.9 and score.reward_map[0, 90, 64] > 0.9


@pytest.mark.parametrize("degrees", [-30, -10, 0, 20])
def test_broken_target_is_put_together_at_any_tilt(rapidocr_engine, degrees):
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).multiline_text(
        (128, 128),
        "Spring\nCollection\n2024",
        fill="black",
        font=ImageFont.load_default(28),
        anchor="mm",
        align="center",
    )
    turned = np.array(image.rotate(degrees, fillcolor="white", resample=Image.Resampling.BICUBIC))
    score = OcrMapScorer(rapidocr_engine)(
        torch.from_numpy(turned).permute(2, 0, 1)[None] / 255, ['a poster displaying "Spring Collection 2024"']
    )
    assert score.details["num_lines"].tolist() == [3] and score.details["exact"].tolist() == [1]
    assert score.reward.item() > 0.9


def characters_of(text, confidences):
    borders = np.linspace(0, 1, len(text) + 1).tolist()
    return tuple(map(Character, text, confidences, borders, borders[1:]))


def test_characters_are_rewarded_each_at_its_place():
    line = TextLine(box(2, 4, 62, 28), "HAT", 0.9, characters_of("HAT", [1.0, 0.9, 0.8]))
    score = score_of(line, per_character=True, mask_sigma=0.0)
    whole = score_of(line, mask_sigma=0.0)
    # scaled by 0.6 to the mean of (1, 0, 0.8)
    assert score.reward_map[0, 16, [12, 32, 52]].tolist() == pytest.approx([1.0, 0.0, 0.8])
    assert score.reward_map.mean().item() == pytest.approx(whole.reward_map.mean().item(), abs=1e-3)
    assert torch.equal(score.reward, whole.reward)


def test_engine_without_characters_is_refused_when_they_are_asked_for():
    with pytest.raises(ValueError, match="'HUT' came without; take engine=\"rapidocr\""):
        score_of(TextLine(box(2, 4, 62, 28), "HUT", 0.9), per_character=True)


def test_engine_options_reach_an_engine_by_its_name():
    with pytest.raises(ValueError, match="'rapidocr' has no option weights"):
        OcrMapScorer("rapidocr", engine_options={"weights": "here"})
    with pytest.raises(ValueError, match="no confidence of a character"):
        OcrMapScorer("paddleocr", per_character=True)


def drawn_word(word, broken=None, font_size=36, size=128):
    """A word in the middle of an image and the column of its `broken` letter, whose lower half is left out."""
    font = ImageFont.load_default(font_size)
    image = Image.new("L", (size, size), 255)
    left = (size - font.getlength(word)) / 2
    ImageDraw.Draw(image).text((left, size / 2), word, fill=0, font=font, anchor="lm")
    levels = torch.from_numpy(np.array(image)).float() / 255
    if broken is None:
        return levels.expand(3, size, size), None
    start, end = (left + font.getlength(word[:i]) for i in (broken, broken + 1))
    levels[size // 2 :, round(start) : round(end)] = 1.0
    return levels.expand(3, size, size), int((start + end) / 2)


def test_real_engine_blames_another_letter_at_its_place():
    scorer, words = OcrMapScorer("rapidocr", per_character=True), ["HOMER", "SALAD", "RIVER"]
    wrong = ["HOTER", "SAXAD", "RIVUR"]
    images = torch.stack([drawn_word(text)[0] for text in wrong])
    score = scorer(images, [f'says "{word}"' for word in words])
    assert score.reward.tolist() == pytest.approx([0.8] * 3, abs=0.05)
    for word, text, reward_map in zip(words, wrong, score.reward_map):
        place = next(i for i in range(5) if word[i] != text[i])
        _, column = drawn_word(text, broken=place)
        # across the letters' middle, away from the box's soft ends
        row = reward_map[64, 24:104]
        assert abs(row.argmin().item() + 24 - column) < 8 and row.min() < 0.3 and row.max() > 0.9


def test_batch_is_scored_like_its_images_alone(rapidocr_engine, draw_text):
    scorer = OcrMapScorer(rapidocr_engine)
    images, prompts = torch.stack([draw_text("HUT"), draw_text("CAP")]), [PROMPT, 'says "CAP"']
    together = scorer(images, prompts)
    for i in range(2):
        alone = scorer(images[i : i + 1], prompts[i : i + 1])
        assert torch.equal(alone.reward_map[0], together.reward_map[i]) and alone.reward[0] == together.reward[i]


def test_map_has_the_images_height_and_width():
    scorer = OcrMapScorer(engine_reading(TextLine(box(2, 2, 12, 8), "HUT", 0.9)))
    score = scorer(torch.rand(2, 3, 16, 24), [PROMPT] * 2)
    assert score.reward_map.shape == (2, 16, 24) and score.reward_map.argmax() // 24 < 8


def test_metadata_targets_take_the_prompts_place():
    scorer = OcrMapScorer(engine_reading(TextLine(box(2, 2, 12, 8), "CAP", 1.0)))
    assert scorer(torch.rand(1, 3, 16, 16), ["a sign"], [{"targets": ["cap"]}]).reward.item() == 1


def test_prompt_without_target_is_refused_before_any_reading():
    def engine(image):
        raise AssertionError("read")

    with pytest.raises(ValueError, match="no quoted text"):
        OcrMapScorer(engine)(torch.rand(2, 3, 8, 8), [PROMPT, "a red circle"])


def test_bad_images_are_refused(rapidocr_engine):
    with pytest.raises(ValueError, match="divide 8-bit levels by 255"):
        OcrMapScorer(rapidocr_engine)(torch.full((1, 3, 8, 8), 255.0), [PROMPT])


def test_image_that_cannot_be_read_is_not_valid_and_takes_the_mean_of_the_others(caplog):
    def engine(image):
        if image.max() == 0:
            raise OSError("bad crop")
        return [TextLine(box(2, 2, 12, 8), "HUT" if image.min() == 255 else "HAT", 0.9)]

    images = torch.stack([torch.full((3, 16, 16), level) for level in (1.0, 0.0, 0.6)])
    with caplog.at_level(logging.WARNING):
        score = OcrMapScorer(engine)(images, [PROMPT] * 3)
    assert "bad crop" in caplog.text
    assert score.valid.tolist() == score.map_valid.tolist() == [True, False, True]
    assert score.reward.tolist() == pytest.approx([0.9, 0.75, 0.6])
    assert score.details["similarity"].tolist() == pytest.approx([1, 5 / 6, 2 / 3])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batch_without_a_readable_image_is_marked_invalid(batch_size):
    def engine(image):
        raise OSError("session lost")

    score = OcrMapScorer(engine)(torch.rand(batch_size, 3, 8, 8), [PROMPT] * batch_size)
    assert not score.valid.any() and not score.map_valid.any() and score.reward.tolist() == [0] * batch_size


def test_prompts_of_a_data_set_are_checked_together():
    scorer = OcrMapScorer(lambda image: [])
    prompts = [PROMPT, "a red circle", 'a "SALE" and "OPEN', "a hut"]
    with pytest.raises(PromptErrors, match="3 of 4 prompts cannot be scored: prompt 1: .* no quoted text") as error:
        scorer.check_prompts(prompts)
    assert list(error.value.faults) == [1, 2, 3] and "cannot be paired" in error.value.faults[2]
    scorer.check_prompts(prompts, [{"targets": ["HUT"]}] * 4)


def test_submitted_images_are_scored_when_asked_for(rapidocr_engine, draw_text):
    scorer = OcrMapScorer(rapidocr_engine)
    images = torch.stack([draw_text("HUT"), draw_text("CAP")])
    expected, finish = scorer(images, [PROMPT] * 2), scorer.submit(images, [PROMPT] * 2)
    images.zero_()  # the caller's again
    score = finish.result()
    assert torch.equal(score.reward, expected.reward) and torch.equal(score.reward_map, expected.reward_map)


def test_worker_processes_score_like_this_one(rapidocr_engine, draw_text):
    images, prompts = torch.stack([draw_text(word) for word in ("HUT", "HAT", "CAP")]), [PROMPT] * 3
    serial = OcrMapScorer("rapidocr", per_character=True)(images, prompts)
    pooled = OcrMapScorer("rapidocr", per_character=True, num_workers=1)(images, prompts)
    assert torch.equal(pooled.reward, serial.reward) and torch.equal(pooled.reward_map, serial.reward_map)


@pytest.mark.parametrize(
    "option",
    [
        {"reward_bg": 1.5},
        {"reward_bg": float("nan")},
        {"mask_sigma": -1},
        {"missing_penalty": 1.5},
        {"repeat_penalty": 2},
        {"extra_penalty": -0.1},
        {"normalisation": "upper"},
        {"num_workers": -1},
    ],
)
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        OcrMapScorer(engine_reading(), **option)


def test_normalisation_is_passed_on():
    line = TextLine(box(2, 2, 30, 12), "DON'T", 1.0)
    prompt = 'a sign that says "Don’t"'
    assert score_of(line, prompt=prompt).details["exact"].item() == 0
    assert score_of(line, prompt=prompt, normalisation="unicode").details["exact"].item() == 1
    with pytest.raises(ValueError, match="empty once normalised"):
        score_of(line, prompt='says "\u200b"', normalisation="unicode")


@pytest.mark.parametrize("size", [(1, 1), (8, 4096), (4096, 1024)])
def test_images_of_any_size_are_scored(size):
    score = score_of(TextLine(box(0, 0, 0.9 * size[1], 0.9 * size[0]), "HUT", 0.9), size=size)
    assert score.reward_map.shape == (1, *size) and score.reward_map[0, 0, 0].item() == pytest.approx(0.9, abs=0.02)


def test_twenty_targets_are_scored():
    words = [f"WORD{chr(65 + i)}" for i in range(20)]
    lines = [TextLine(box(2, 10 * i, 60, 10 * i + 8), word, 1.0) for i, word in enumerate(words)]
    prompt = "a wall with " + ", ".join(f'"{word}"' for word in reversed(words))
    assert score_of(*lines, prompt=prompt, size=(256, 64)).reward.item() == 1
