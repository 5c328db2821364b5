"""The prompts with several texts: what the script writes, and that no text is held out in one set and trained on in another."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flow_grpo.text_maps.targets import normalise, prompt_targets
from flow_grpo.training.data import load_prompts
from scripts.dataset.ocr import FOLDER as OCR
from scripts.dataset.several import FOLDER, MAX_LENGTH, NUM_PROMPTS, NUM_TEXTS


def targets(folder, split):
    return [prompt_targets(prompt) for prompt in load_prompts(folder, split)]


def test_the_script_writes_the_committed_files_byte_for_byte(tmp_path):
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-m", "scripts.dataset", "several", "--out", tmp_path]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for split in NUM_PROMPTS:
        assert (tmp_path / f"{split}.txt").read_bytes() == (FOLDER / f"{split}.txt").read_bytes()


@pytest.mark.parametrize("split", NUM_PROMPTS)
def test_every_prompt_has_two_to_five_different_texts_and_no_stray_period(split):
    prompts, texts = load_prompts(FOLDER, split), targets(FOLDER, split)
    assert len(set(prompts)) == NUM_PROMPTS[split]
    assert {len(each) for each in texts} == set(NUM_TEXTS)
    assert all(len({normalise(text) for text in each}) == len(each) for each in texts)
    assert max(sum(map(len, each)) for each in texts) <= MAX_LENGTH
    outside = [re.sub(r'"[^"]*"', "T", prompt) for prompt in prompts]
    assert not any(".." in rest or " ." in rest for rest in outside) and all(rest[-1] in ".T" for rest in outside)


def test_a_fifth_of_the_further_texts_are_sentences():
    further = [text for each in targets(FOLDER, "train") for text in each[1:]]
    assert sum(text[-1] in ".!?" and len(text) > 25 for text in further) / len(further) > 0.1


def test_no_text_that_is_held_out_is_trained_on_in_either_set():
    held_out = {normalise(text) for folder in (OCR, FOLDER) for each in targets(folder, "test") for text in each}
    trained = {normalise(text) for folder in (OCR, FOLDER) for each in targets(folder, "train") for text in each}
    assert not held_out & trained
