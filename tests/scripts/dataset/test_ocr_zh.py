"""The Chinese OCR prompts: what the script writes, in characters that the engine has, quoted as Chinese writers quote."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from flow_grpo.text_maps.readable import known_characters
from flow_grpo.text_maps.targets import normalise, prompt_targets
from flow_grpo.training.data import load_prompts
from scripts.dataset.ocr_zh import FOLDER, MAX_REPEATS, NUM_PROMPTS, TARGET_LENGTHS, figures


def texts(split):
    return [text for prompt in load_prompts(FOLDER, split) for text in prompt_targets(prompt)]


def test_the_script_writes_the_committed_files_byte_for_byte(tmp_path):
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-m", "scripts.dataset", "ocr_zh", "--out", tmp_path]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for split in NUM_PROMPTS:
        assert (tmp_path / f"{split}.txt").read_bytes() == (FOLDER / f"{split}.txt").read_bytes()


@pytest.mark.parametrize("split", NUM_PROMPTS)
def test_every_prompt_quotes_one_or_two_texts_that_the_engine_can_read(split):
    prompts = load_prompts(FOLDER, split)
    assert len(set(prompts)) == len(prompts) == NUM_PROMPTS[split]
    assert {len(prompt_targets(prompt)) for prompt in prompts} == {1, 2}
    assert all(len(text) in TARGET_LENGTHS for text in texts(split))
    assert set("".join(texts(split))) <= known_characters("rapidocr", {})
    assert max(Counter(map(normalise, texts(split))).values()) <= MAX_REPEATS


def test_prompts_quote_in_three_ways_and_never_in_two_at_once():
    kinds = Counter("".join(sorted(set(re.findall('[“「"]', prompt)))) for prompt in load_prompts(FOLDER, "train"))
    assert set(kinds) == {"“", "「", '"'} and min(kinds.values()) > 150


def test_texts_hold_digits_and_punctuation():
    for sign in "0123456789，：！《%":
        assert any(sign in text for text in texts("train"))


def test_no_text_that_is_held_out_is_trained_on():
    assert not set(map(normalise, texts("test"))) & set(map(normalise, texts("train")))


def test_nothing_of_the_grammar_is_left_in_a_prompt():
    leftover = re.compile(r"[{}\[\]|*+ ]|，，|，。")
    prompts = [prompt for split in NUM_PROMPTS for prompt in load_prompts(FOLDER, split)]
    assert [prompt for prompt in prompts if leftover.search(prompt)] == []


def test_readme_quotes_prompts_and_figures_as_they_are():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    quoted = [line.strip() for line in readme.splitlines() if line.startswith("    ") and "scripts" not in line]
    assert quoted and set(quoted) <= set(load_prompts(FOLDER, "test"))
    rows = {split: figures(load_prompts(FOLDER, split)) for split in NUM_PROMPTS}
    for name, value in rows["train"].items():
        assert f"| {name} | {value} | {rows['test'][name]} |" in readme
