"""models/tiny-clip as a stranger meets it: loads like any CLIP, knows held-out scenes, and is small enough to commit."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from scripts.pretrain.billboards import make_billboard
from scripts.pretrain.signs_world import SIZE
from scripts.pretrain.tiny_clip import make_clip, make_processor, make_tokenizer
from scripts.pretrain.tiny_clip_training import held_out_group, retrieval_accuracy

FOLDER = Path("models/tiny-clip")


@pytest.fixture(scope="module")
def model():
    return CLIPModel.from_pretrained(FOLDER).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_the_committed_model_is_what_the_script_builds(model, tokenizer):
    built = make_clip(make_tokenizer())
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert model.config.vision_config.image_size == SIZE


def test_the_folder_holds_at_most_5_mb():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 5e6


def test_its_tokenizer_reads_captions_as_tiny_sd3s_does(tokenizer):
    captions = [make_billboard(seed).caption for seed in range(8)]
    assert tokenizer(captions).input_ids == make_tokenizer()(captions).input_ids


def test_each_of_64_held_out_images_finds_its_caption_nine_times_in_ten(model, tokenizer):
    """Half are billboards, whose words were not trained on, half are pairs; eight groups of 64, in both directions."""
    groups = [held_out_group(index) for index in range(8)]
    accuracies = [retrieval_accuracy(model, tokenizer, make_processor(), group) for group in groups]
    assert torch.tensor(accuracies).mean(dim=0).min() > 0.9
