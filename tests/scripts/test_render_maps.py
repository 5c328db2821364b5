"""The render tool: prompts found, options read, pictures and pages written, and every mistake named in one line."""

import base64
import io
import json
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from maps_page import LOSSLESS_UP_TO, Row, page
from PIL import Image
from render_maps import find_images, find_prompts, main, make_panels, make_scorers, read_image

from flow_grpo.clip_gradcam_scorer import ClipGradcamScorer
from flow_grpo.map_overlay import Panel, overlay
from flow_grpo.score import to_uint8
from tests.clip_models import make_clip

SAYS_HUT = 'a sign that says "HUT"'


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    for part in make_clip():
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def signs(draw_text):
    return [to_uint8(draw_text(word)[None])[0] for word in ("HUT", "SOB", "TAN")]


@pytest.fixture
def folder(tmp_path, signs):
    """Three signs, named so that their order by letters is not their order by numbers."""
    path = tmp_path / "signs"
    path.mkdir()
    for name, sign in zip(("1.png", "2.png", "10.png"), signs):
        Image.fromarray(sign).save(path / name)
    return path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["render_maps.py", *map(str, arguments)])
    main()


class Tags(HTMLParser):
    """The page's elements with their attributes, and the text of each kind of element."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], {}
        self.feed(text)
        assert not self.open, "elements left open"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def embedded(source):
    head, data = source.split(",", 1)
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


# What is asked for


def test_images_come_in_the_order_of_their_numbers(folder):
    (folder / "prompts.txt").write_text("")
    assert [path.name for path in find_images(folder)] == ["1.png", "2.png", "10.png"]
    assert find_images(folder / "2.png") == [folder / "2.png"]


def test_prompts_are_the_given_one_or_the_listed_ones_or_each_images_own(folder):
    images = find_images(folder)
    for name in ("1", "2", "10"):
        (folder / f"{name}.txt").write_text(f"caption {name}\n")
    assert find_prompts(images, None) == ["caption 1", "caption 2", "caption 10"]
    (folder / "prompts.txt").write_text("one\ntwo\nten\n")
    assert find_prompts(images, None) == ["one", "two", "ten"]
    assert find_prompts(images, "") == ["", "", ""]


def test_prompts_that_do_not_fit_the_images_are_refused(folder):
    images = find_images(folder)
    with pytest.raises(ValueError, match="no prompt"):
        find_prompts(images, None)
    (folder / "prompts.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="2 lines for 3 images"):
        find_prompts(images, None)


def test_options_reach_their_scorer_and_the_model_every_clip_scorer(model):
    names = ["clip_gradcam", "clip_gradient"]
    scorers = make_scorers(names, ["clip_gradient.blur_sigma=2", "clip_gradient.quantiles=[0, 0.9]"], str(model), "cpu")
    assert [type(scorer).__name__ for scorer in scorers.values()] == ["ClipGradcamScorer", "ClipGradientScorer"]
    assert scorers["clip_gradcam"].clip is scorers["clip_gradient"].clip
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    plain = make_scorers(["clip_gradient"], [], str(model), "cpu")
    (blurred,) = make_panels(image, "a", {"clip_gradient": scorers["clip_gradient"]})
    assert np.abs(make_panels(image, "a", plain)[0].reward_map - blurred.reward_map).max() > 0.1


@pytest.mark.parametrize(
    "option, said",
    [
        ("block=1", "SCORER.NAME=JSON"),
        ("clip_gradcam.block", "SCORER.NAME=JSON"),
        ("ocr_map.mask_sigma=0", "SCORER.NAME=JSON"),
        ("clip_gradcam.dtype=float32", "quotes"),
        ("clip_gradcam.blok=1", "does not take blok"),
        ("clip_gradcam.block=3", "exactly zero"),
    ],
)
def test_options_that_say_nothing_are_refused(model, option, said):
    with pytest.raises(ValueError, match=said):
        make_scorers(["clip_gradcam"], [option], str(model), "cpu")


def test_a_model_without_a_clip_scorer_is_refused(model):
    with pytest.raises(ValueError, match="--model is for the CLIP scorers"):
        make_scorers(["ocr_map"], [], str(model), "cpu")


def test_pictures_of_any_mode_are_read_as_they_are_seen(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 3  # the camera was upside down
    turned.save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png") == pixels[::-1, ::-1]).all()
    Image.fromarray(pixels).convert("L").save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").shape == (4, 6, 3)


# What is drawn


def test_panels_hold_what_the_scorers_say(model, signs):
    scorer = ClipGradcamScorer(str(model))
    (panel,) = make_panels(signs[0], SAYS_HUT, {"clip_gradcam": scorer})
    image = np.moveaxis(signs[0], 2, 0)[None].astype(np.float32) / 255
    score = scorer(torch.from_numpy(image), [SAYS_HUT])
    assert panel.reward == score.reward.item() and panel.map_kind == "importance" and panel.valid
    assert np.array_equal(panel.reward_map, score.reward_map[0].numpy())


def test_an_image_becomes_a_picture_with_a_column_a_map(folder, model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.png"
    run(monkeypatch, folder / "1.png", SAYS_HUT, "--scorer", "clip_gradcam,ocr_map", "--model", model, "--out", out)
    assert f"wrote {out}" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width == 3 * 332 - 12 + 32
        read = np.asarray(picture).astype(int)
    ocr_map = read[80:380, 680:1000]
    assert (ocr_map[..., 0] - ocr_map[..., 2]).max() > 60  # the word is right, and thus red


def test_a_folder_becomes_one_page_with_everything_in_it(folder, model, tmp_path, monkeypatch, signs):
    (folder / "prompts.txt").write_text('says "HUT"\nsays "SOB"\n<script>alert(1)</script> "TAN" & more\n')
    out = tmp_path / "maps.html"
    run(monkeypatch, folder, "--scorer", "clip_gradcam", "ocr_map", "--model", model, "--out", out)
    found = Tags(out.read_text(encoding="utf-8"))
    images = found.named("img")
    assert len(images) == 9 and [each["alt"] for each in images[:3]] == ["image", "clip_gradcam", "ocr_map"]
    for sign, source in zip(signs, images[::3]):
        assert np.array_equal(embedded(source["src"]), sign)
    assert found.texts["h2"][2] == '<script>alert(1)</script> "TAN" & more'
    assert len(found.named("script")) == 1
    assert "".join(found.texts["p"]) == "1.png2.png10.png"
    assert not found.named("link") and all("src" not in each for each in found.named("script"))


# The page


def panel_of(shape, reward=0.5, scorer="ocr_map", map_kind="reward"):
    return Panel(scorer, reward, np.tile(np.linspace(0, 1, shape[1]), (shape[0], 1)), map_kind)


def test_page_embeds_each_overlay_exactly_where_it_is_small_and_closely_where_not():
    for side, tolerance in (
        (LOSSLESS_UP_TO, 0),
        (LOSSLESS_UP_TO + 1, 1),
    ):  # a JPEG of quality 90: half a level here, on average
        image = np.full((64, side, 3), 100, dtype=np.uint8)
        panel = panel_of(image.shape[:2])
        shown = Tags(page([Row("a.png", "", image, [panel])], "t")).named("img")[1]
        difference = embedded(shown["src"]).astype(int) - overlay(image, panel.reward_map)
        assert np.abs(difference).mean() <= tolerance
        assert shown["class"] == ("enlarged" if tolerance == 0 else "reduced")


def test_page_sorts_by_name_or_by_each_score():
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    rows = [
        Row(f"{i}.png", "", image, [panel_of((4, 4), r), panel_of((4, 4), -r, "b")]) for i, r in enumerate((2.5, 1))
    ]
    found = Tags(page(rows, "t"))
    assert [json.loads(each["data-keys"]) for each in found.named("article")] == [[0, 2.5, -2.5], [1, 1, -1]]
    assert found.texts["option"] == ["name", "score of ocr_map", "score of b"]
    assert [each["value"] for each in found.named("option")] == ["0", "1", "2"]


def test_page_explains_each_kind_of_map_once():
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    kinds = ["reward", "importance", "importance"]
    found = Tags(page([Row("a", "", image, [panel_of((4, 4), map_kind=kind) for kind in kinds])], "t"))
    legends = [each["style"] for each in found.named("i")]
    assert len(legends) == 2 and "rgb(255, 255, 255)" in legends[0] and "rgb(255, 255, 255)" not in legends[1]


def test_page_forbids_the_browser_to_fetch_anything():
    text = page([Row("a", "", np.zeros((4, 4, 3), dtype=np.uint8), [panel_of((4, 4))])], "<t>")
    (policy,) = [each["content"] for each in Tags(text).named("meta") if "http-equiv" in each]
    assert "default-src 'none'" in policy and "http" not in policy
    assert "http://" not in text and "https://" not in text and "<t>" not in text


# Mistakes


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nowhere.png", "a", "--scorer", "ocr_map", "--out", "o.png"], "nowhere.png does not exist"),
        (["{folder}", "a", "--scorer", "ocr_map", "--out", "o.png"], "must end in .png (of one image)"),
        (["{folder}/1.png", "a", "--scorer", "ocr_map", "--out", "o.gif"], "must end in .png"),
        (["{folder}/1.png", "a", "--scorer", "ocr_mup", "--out", "o.png"], "unknown scorer 'ocr_mup'"),
        (["{folder}/1.png", "no target", "--scorer", "ocr_map", "--out", "o.png"], "1.png: "),
        (["{folder}/1.png", SAYS_HUT, "--scorer", "ocr", "--out", "o.png"], "has no map to draw"),
        (["{folder}/notes.png", "a", "--scorer", "ocr_map", "--out", "o.png"], "cannot identify image"),
    ],
)
def test_a_mistake_ends_in_one_line_that_names_it(folder, monkeypatch, arguments, said):
    (folder / "notes.png").write_text("no picture")
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *(argument.format(folder=folder) for argument in arguments))
    assert str(ended.value).startswith("render_maps.py: ") and said in str(ended.value)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        find_images(tmp_path)


@pytest.mark.parametrize(("letters", "ground"), [("black", 255), ("white", 0)])
def test_transparent_image_is_laid_on_a_ground_that_shows_it(letters, ground, tmp_path):
    picture = Image.new("RGBA", (64, 32), (0, 0, 0, 0))
    picture.paste(letters, (8, 8, 24, 24))
    picture.save(tmp_path / "logo.png")
    levels = read_image(tmp_path / "logo.png")
    assert (levels[16, 16] == 255 - ground).all() and (levels[0, 0] == ground).all()


def test_broken_image_is_refused_with_a_remedy(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    with pytest.raises(ValueError, match="no image that can be read .*replace the file"):
        read_image(tmp_path / "2.png")


def test_image_of_16_bits_keeps_its_greys(tmp_path):
    Image.fromarray(np.full((4, 6), 128 * 257, dtype=np.uint16)).save(tmp_path / "scan.png")
    assert (read_image(tmp_path / "scan.png") == 128).all()
