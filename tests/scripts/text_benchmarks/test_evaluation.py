"""A whole evaluation in small: a real pipeline, a real engine, and an end in the middle."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from scripts.text_benchmarks.__main__ import main


@pytest.fixture
def prompts(tmp_path):
    rows = [
        {"prompt_id": 0, "prompt": 'a <b>sign</b> that says "HUT"', "text": ["HUT"], "category": "sign"},
        {"prompt_id": 1, "prompt": 'a sign that says "SOB"', "text": ["SOB"], "category": "sign"},
    ]
    path = tmp_path / "text_prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def drawn(text):
    image = Image.new("RGB", (256, 96), "white")
    ImageDraw.Draw(image).text((40, 20), text, fill="black", font=ImageFont.load_default(size=48))
    return image


def test_images_that_lie_there_are_read_and_shown(prompts, tmp_path):
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    drawn("HUT").save(out / "images" / "0000_0.png")
    command = ["longtext-bench", "--prompts", str(prompts), "--out", str(out), "--clip", "models/tiny-clip"]
    with pytest.raises(ValueError, match="1 images are missing, such as .*0001_0.png; give --model"):
        main(command)
    drawn("SOD").save(out / "images" / "0001_0.png")
    found = main(command)
    assert found["all"]["text_score"] == 0.5 and found["all"]["exact"] == 0.5
    assert 0 <= found["all"]["clip_score"] <= 2.5
    assert [row["read"] for row in found["images"]] == ["HUT", "SOD"]
    page = (out / "index.html").read_text()
    assert "&lt;b&gt;sign" in page and "<b>sign" not in page and "images/0001_0.png" in page


def test_a_killed_evaluation_goes_on_where_it_was(prompts, tmp_path):
    out = tmp_path / "out"
    command = ["longtext-bench", "--prompts", str(prompts), "--out", str(out), "--model", "models/tiny-sd3"]
    command += ["--steps", "1", "--resolution", "64", "--images-per-prompt", "1"]
    whole = main(command)
    first, second = out / "images" / "0000_0.png", out / "images" / "0001_0.png"
    pixels, made = np.asarray(Image.open(second)), first.stat().st_mtime_ns
    second.unlink()  # as if it had been killed before the second image
    (out / "readings" / "0001_0.json").unlink()
    assert main(command) == whole
    assert (np.asarray(Image.open(second)) == pixels).all() and first.stat().st_mtime_ns == made
    with pytest.raises(ValueError, match="holds another evaluation .*steps: 1 there, 2 now.*take another --out"):
        main([*command, "--steps", "2"])
