"""Presets: what they make of a run, what they refuse, and that every row of the table fits its card by the memory table."""

import pytest

from config.grpo import get_config
from config.presets import FITS, SIZES
from config.validation import resolve
from scripts.memory.models import MODELS
from scripts.memory_table import memory, needed

VAE_GIB = 3.0  # a decoder's activations of one 512 px image; by then the backward pass keeps nothing
MEMORY_ROWS = {"stable-diffusion-3.5-medium": "SD3.5-medium"}  # where the table calls a model by another name
PROMPT_TOKENS = {"FLUX.2-klein-base-4B": 512, "FLUX.2-klein-base-9B": 512}  # of the named runs; the others take 128


def resolved(run, preset, num_gpus=1, **changes):
    config = get_config(run)
    config.num_gpus, config.preset = num_gpus, preset
    for name, value in changes.items():
        config.update_from_flattened_dict({name: value})
    return resolve(config, num_gpus)


@pytest.mark.parametrize("model", FITS)
def test_every_preset_needs_less_than_nine_tenths_of_its_card(model):
    row = MODELS[MEMORY_ROWS.get(model, model)]
    per_image = memory(row, resolution=512, batch=1, length=PROMPT_TOKENS.get(model, 128))
    for size, card in FITS[model].items():
        columns = per_image | {name: card.batch_size * per_image[name] for name in ("kept", "checkpointed")}
        columns |= {name: max(columns[name], VAE_GIB) for name in ("kept", "checkpointed")}
        need = needed(columns, card.gradient_checkpointing, card.offload)
        assert need <= 0.9 * int(size.removesuffix("gb")), (size, need)


def test_a_preset_turns_a_run_down_and_keeps_its_epoch():
    (plain, whole), (small, pieces) = (resolved("ocr_map_zimage", preset, 8) for preset in ("", "24gb"))
    assert (plain.batch_size, plain.offload) == (12, False) and (small.batch_size, small.offload) == (4, True)
    assert whole.num_samples == pieces.num_samples and small.gradient_checkpointing


def test_a_preset_never_turns_anything_up():
    config, _ = resolved("ocr_map_zimage", "80gb", batch_size=3, offload=True)
    assert (config.batch_size, config.offload, config.gradient_checkpointing) == (3, True, True)


def test_the_published_epoch_of_one_gpu_is_kept_in_smaller_batches():
    config, geometry = resolved("ocr_map_sd3", "24gb")
    assert (geometry.num_groups, geometry.group_size, config.batch_size) == (8, 8, 4)


@pytest.mark.parametrize("num_gpus", [1, 2, 4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_the_named_runs_divide_on_every_card_that_holds_them(size, num_gpus):
    named = ("sd3", "sd3_fast", "flux", "zimage", "flux2_klein", "qwenimage21")
    for run in (f"ocr_map_{name}" for name in named):
        model = get_config(run).model.rpartition("/")[2]
        if size in FITS[model]:
            assert resolved(run, size, num_gpus)[0].batch_size <= FITS[model][size].batch_size


def test_what_does_not_fit_or_is_not_known_is_refused():
    with pytest.raises(ValueError, match="Qwen/Qwen-Image does not fit preset=24gb; the smallest that it fits is 80gb"):
        resolved("ocr_map_qwenimage", "24gb")
    with pytest.raises(ValueError, match="preset=24gb knows stable.*, and not model=models/tiny-sd3; leave preset out"):
        resolved("tiny_ocr_map", "24gb")
    with pytest.raises(ValueError, match=r"up to 512 x 512 pixels, and resolution=1024 has more; draw smaller ones"):
        resolved("ocr_map_sd3", "24gb", resolution=1024)
    with pytest.raises(ValueError, match=r"up to 512 x 512 pixels, and resolution=\(512, 768\) has more"):
        resolved("ocr_map_sd3", "24gb", eval_resolution=(512, 768))
    with pytest.raises(ValueError, match="for a LoRA, and this run has train.adapter=full; leave preset out"):
        resolved("ocr_map_sd3", "24gb", **{"train.adapter": "full"})
    with pytest.raises(ValueError, match="preset='12gb'.*choose one of"):
        resolved("ocr_map_sd3", "12gb")
