import pytest
import torch
from transformers import CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from flow_grpo.clip.load import load_clip
from flow_grpo.clip.preprocess import ClipPreprocess
from tests.clip_models import LENGTH, make_clip


@pytest.fixture(scope="module")
def pair():
    return make_clip()


@pytest.fixture
def folder(tmp_path, pair):
    for part in pair:
        part.save_pretrained(tmp_path)
    return str(tmp_path)


def test_folder_without_a_processor_is_read_at_the_towers_size(folder):
    assert load_clip(folder).preprocess == ClipPreprocess((32, 32), 32)


def test_preprocessing_is_the_folders_own(folder, pair):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]
    )
    CLIPProcessor(processor, pair[1]).save_pretrained(folder)
    preprocess = load_clip(folder).preprocess
    assert (preprocess.crop, preprocess.shortest_edge, preprocess.mean) == ((32, 32), 40, (0.1, 0.2, 0.3))


@pytest.mark.parametrize("settings", [{"resample": 2}, {"crop_size": {"height": 24, "width": 24}}])
def test_unknown_preprocessing_is_refused(folder, settings):
    CLIPImageProcessorPil(size={"shortest_edge": 32}, **settings).save_pretrained(folder)
    with pytest.raises(ValueError, match="only bicubic"):
        load_clip(folder)


def test_long_prompt_is_truncated_as_clip_does_and_said_so(pair):
    clip = load_clip(pair)
    fits, long, longer = "a" * (LENGTH - 2), "a" * (LENGTH - 1), "a" * 500
    embeds, truncated = clip.embed_texts([fits, long, longer, ""])
    assert truncated.tolist() == [False, True, True, False]
    torch.testing.assert_close(embeds[1], embeds[2])
    assert (embeds[0] - embeds[1]).abs().max() > 1e-3


def test_a_pair_brings_its_own_tokenizer(pair):
    for model, tokenizer in (((*pair, None), None), (pair, pair[1])):
        with pytest.raises(ValueError, match=r"a tuple is \(model, tokenizer\)"):
            load_clip(model, tokenizer)


def test_a_model_that_the_hub_does_not_give_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="CLIP model models/tinyclip is no folder here, and the hub did not give it"):
        load_clip("models/tinyclip")


def test_kind_of_another_model_is_refused():
    with pytest.raises(ValueError, match="of transformers' type 'clip_text_model'; only clip"):
        load_clip("models/tiny-sd3/text_encoder")


def test_loaded_weights_are_frozen_and_given_ones_left_as_they_are(folder, pair):
    model, _ = pair
    load_clip(pair)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not load_clip(folder).tower.projection.requires_grad
