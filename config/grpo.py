"""The named runs, each the base plus its changes.

accelerate launch train_sd3.py --config config/grpo.py:tiny_ocr_map
"""

from collections.abc import Callable

import ml_collections

from config import base

# OCR of the large models' images: workers read beside the sampling, two for each GPU's process.
OCR_WORKERS = {"engine": "paddleocr", "num_workers": 2}
# Another reader than the one that is trained on, for evaluations alone.
OTHER_READER = {"ocr": {"engine": "ppocrv4", "num_workers": 2}}
# Of the tiny model's images: compares pixels with what the caption asks for, and reads nothing.
JUDGES = tuple(f"scripts.pretrain.judge_scorer:{name}" for name in ("SignsJudge", "ShapeJudge"))


RUNS: dict[str, Callable[[], ml_collections.ConfigDict]] = {}


def run(make: Callable[[], ml_collections.ConfigDict]) -> Callable[[], ml_collections.ConfigDict]:
    """Register a run under its function's name; the first line of its docstring says what it is."""
    RUNS[make.__name__] = make
    return make


def get_config(name: str = "") -> ml_collections.ConfigDict:
    if name not in RUNS:
        raise ValueError(f"unknown configuration {name!r}; choose one of {', '.join(RUNS)}")
    config = RUNS[name]()
    config.name = name
    return config


@run
def tiny_ocr_map() -> ml_collections.ConfigDict:
    """OCR maps on the embedded tiny model and its signs: the demo.

    accelerate launch --cpu train_sd3.py --config config/grpo.py:tiny_ocr_map
    6 to 7 minutes of one CPU core.
    """
    config = base.get_config()
    config.model = "models/tiny-sd3"
    config.dataset = "dataset/signs"
    config.resolution = 64
    config.max_sequence_length = 34
    config.rewards.ocr_map = 1.0
    config.advantage.mode = "residual"  # what trained fastest: docs/evidence.md
    for judge in JUDGES:
        config.eval_rewards[judge] = {}
    config.num_eval_prompts = 192

    config.num_epochs = 10
    config.eval_every = 5
    config.samples_every = 5
    config.save_every = 5
    config.num_groups = 8
    config.group_size = 16
    config.batch_size = 32
    config.updates_per_epoch = 2

    config.sample.num_steps = 8
    config.sample.eval_num_steps = 8
    config.sample.guidance_scale = 1.0
    config.sample.same_start = True
    # The first half: later steps have larger gradients by far (their noise is small) and little left to decide.
    config.train.num_steps = 4
    # At this learning rate the words eat the shapes. A KL that is weak on the text and strong elsewhere keeps both.
    config.train.beta = 1.0
    config.train.spatial_kl = 0.9
    config.train.learning_rate = 1e-3
    config.train.clip_range = 1e-3  # 64 tokens: the mean log-ratio spreads wider than over 1024
    config.train.ema_every = 1
    return config


@run
def tiny_ocr() -> ml_collections.ConfigDict:
    """Flow-GRPO's own way on the same model: the same reward and KL, one advantage per image. The baseline of tiny_ocr_map.

    accelerate launch --cpu train_sd3.py --config config/grpo.py:tiny_ocr
    """
    config = tiny_ocr_map()
    config.advantage.mode = "scalar"
    config.train.ratio = "image"
    return config


@run
def tiny_clip_gradcam() -> ml_collections.ConfigDict:
    """CLIP's score and its Grad-CAM map on the same model, by the embedded tiny-clip.

    accelerate launch --cpu train_sd3.py --config config/grpo.py:tiny_clip_gradcam
    Two CPU cores, about 8 minutes. CLIP's score of a scene rises slowly: see docs/tiny-clip.md.
    """
    config = tiny_ocr_map()
    del config.rewards.ocr_map
    config.rewards.clip_gradcam = 1.0
    config.reward_options.clip_gradcam = {"model": "models/tiny-clip"}
    config.advantage.mode = "weight"  # an importance map
    return config


@run
def ocr_map_sd3() -> ml_collections.ConfigDict:
    """OCR maps on SD3.5-medium at 512 px, with Flow-GRPO's published hyper-parameters.

    accelerate launch --num_processes 8 train_sd3.py --config config/grpo.py:ocr_map_sd3 --config.num_gpus=8
    Any number of GPUs of 80 GB, by config.num_gpus alone; 1, 4 and 32 are Flow-GRPO's published sizes.
    """
    config = base.get_config()
    config.model = "stabilityai/stable-diffusion-3.5-medium"
    config.dataset = "dataset/ocr"
    config.max_sequence_length = 128
    config.mixed_precision = "fp16"
    config.compile = True  # a step takes 0.6 of its seconds on an H100
    config.num_gpus = 32
    _reward_text(config)
    config.train.drop_zero_advantages = True  # Flow-GRPO's rule, to which its beta is tuned
    return config


@run
def ocr_sd3() -> ml_collections.ConfigDict:
    """Flow-GRPO's published OCR run on SD3.5-medium: the scalar `ocr` reward, one advantage per image.

    accelerate launch --num_processes 8 train_sd3.py --config config/grpo.py:ocr_sd3 --config.num_gpus=8
    """
    config = ocr_map_sd3()
    del config.rewards.ocr_map
    del config.reward_options.ocr_map
    config.rewards.ocr = 1.0
    config.reward_options.ocr = OCR_WORKERS
    config.advantage.mode = "scalar"
    config.train.ratio = "image"
    return config


@run
def ocr_map_pickscore_sd3() -> ml_collections.ConfigDict:
    """ocr_map_sd3 with PickScore beside it, so that the text does not eat the picture: 0.8 and 0.2 of the advantage.

    accelerate launch --num_processes 8 train_sd3.py --config config/grpo.py:ocr_map_pickscore_sd3 --config.num_gpus=8
    """
    config = ocr_map_sd3()
    config.rewards.ocr_map = 0.8
    config.rewards.pickscore = 0.2
    # each normalised first: in a weighted sum the scale of PickScore, another than that of OCR, would decide its share
    config.advantage.combine = "each"
    return config


@run
def ocr_map_sd3_fast() -> ml_collections.ConfigDict:
    """ocr_map_sd3 by Flow-GRPO-Fast's settings: no guidance, CPS, three stochastic steps of ten, no KL.

    accelerate launch --num_processes 8 train_sd3.py --config config/grpo.py:ocr_map_sd3_fast --config.num_gpus=8
    """
    config = ocr_map_sd3()
    config.sample.guidance_scale = 1.0
    config.sample.sde = "cps"
    config.sample.noise_level = 0.8
    config.sample.sde_window_size = 3
    config.sample.sde_window_range = (0, 5)
    config.train.clip_range = 1e-5
    config.train.beta = 0.0
    return config


@run
def ocr_map_flux() -> ml_collections.ConfigDict:
    """OCR maps on FLUX.1-dev at 512 px, with the hyper-parameters that Flow-GRPO published for it (with PickScore).

    accelerate launch --num_processes 8 train_sd3.py --config config/grpo.py:ocr_map_flux
    8 GPUs of 80 GB; --config.num_gpus=1, 2, 4, 16 or 32 makes the same epochs, in more or fewer batches.
    """
    config = base.get_config()
    config.policy = "flux"
    config.model = "black-forest-labs/FLUX.1-dev"
    config.dataset = "dataset/ocr"
    config.max_sequence_length = 128
    config.mixed_precision = "bf16"  # Flow-GRPO's choice for FLUX, whose weights are published in it
    config.lora_rank, config.lora_alpha = 64, 128
    _reward_text(config)

    config.num_gpus = 8
    config.group_size = 24
    config.batch_size = 3

    config.sample.num_steps = 6
    config.sample.eval_num_steps = 28
    config.sample.guidance_scale = 3.5  # an embedding here, not a second forward pass
    config.sample.noise_level = 0.9
    config.train.beta = 0.0
    return config


@run
def ocr_map_zimage() -> ml_collections.ConfigDict:
    """OCR maps on Z-Image (6 B parameters) at 512 px. Nobody has run it yet.

    accelerate launch --num_processes 8 train_sd3.py --config config/grpo.py:ocr_map_zimage
    One to 8 GPUs of 80 GB, by config.num_gpus: the computed need is 34 GiB, and 27 with --config.offload=True.
    """
    config = _untuned("zimage", "Tongyi-MAI/Z-Image")
    config.batch_size = 12
    config.gradient_checkpointing = True  # 18 GiB per image without
    config.sample.guidance_scale = 5.0  # its pipeline counts from 0 and says 4
    return config


@run
def ocr_map_flux2_klein() -> ml_collections.ConfigDict:
    """OCR maps on FLUX.2-klein-base-4B at 512 px. Nobody has run it yet.

    accelerate launch --num_processes 8 train_sd3.py --config config/grpo.py:ocr_map_flux2_klein
    One to 8 GPUs of 80 GB, by config.num_gpus: the computed need is 53 GiB.
    """
    config = _untuned("flux2_klein", "black-forest-labs/FLUX.2-klein-base-4B")
    config.max_sequence_length = 512  # the model attends to a prompt's padding, and was trained with this much of it
    config.batch_size = 4
    config.sample.guidance_scale = 4.0
    return config


@run
def ocr_map_qwenimage() -> ml_collections.ConfigDict:
    """OCR maps on Qwen-Image (20 B parameters) at 512 px. Nobody has run it yet.

    accelerate launch --num_processes 8 train_sd3.py --config config/grpo.py:ocr_map_qwenimage
    One to 8 GPUs of 80 GB, by config.num_gpus: the computed need is 51 GiB, and 66 without config.offload.
    """
    config = _untuned("qwenimage", "Qwen/Qwen-Image")
    config.lora_rank, config.lora_alpha = 64, 128
    config.batch_size = 4
    config.gradient_checkpointing = True
    config.offload = True
    config.sample.guidance_scale = 4.0  # its pipeline's true_cfg_scale
    return config


@run
def ocr_map_qwenimage21() -> ml_collections.ConfigDict:
    """OCR maps on Qwen-Image 2.1 at 512 px, without guidance, as it is meant to be sampled. Nobody has run it yet.

    accelerate launch --num_processes 8 train_sd3.py --config config/grpo.py:ocr_map_qwenimage21
    One to 8 GPUs of 80 GB, by config.num_gpus: the computed need is 51 GiB, and 67 without config.offload.
    """
    config = _untuned("qwenimage21", "Qwen/Qwen-Image-2.1")
    config.lora_rank, config.lora_alpha = 64, 128
    config.batch_size = 4
    config.offload = True
    config.sample.guidance_scale = 1.0
    return config


@run
def ocr_map_flux2() -> ml_collections.ConfigDict:
    """OCR maps on FLUX.2-dev (32 B parameters) at 512 px. Nobody has run it yet.

    KIND=fsdp2 NUM_GPUS=8 RUN=ocr_map_flux2 scripts/one_node.sh
    8 GPUs of 80 GB, by FSDP2: the text encoder alone has 45 GiB, which wait in the CPU's memory.
    """
    config = _untuned("flux2", "black-forest-labs/FLUX.2-dev")
    config.max_sequence_length = 512  # the model attends to a prompt's padding, and was trained with this much of it
    config.batch_size = 3
    config.gradient_checkpointing = True
    config.offload = True
    config.sample.guidance_scale = 4.0  # an embedding here, not a second forward pass
    return config


def _reward_text(config: ml_collections.ConfigDict) -> None:
    """OCR maps as the reward, another reader for evaluations, and the mode that trained the tiny model fastest."""
    config.rewards.ocr_map = 1.0
    config.reward_options.ocr_map = OCR_WORKERS
    config.eval_rewards = OTHER_READER
    config.advantage.mode = "residual"  # docs/evidence.md


def _untuned(policy: str, model: str) -> ml_collections.ConfigDict:
    """What the runs of models share that nobody has published a Flow-GRPO run of.

    The SDE, its steps, the learning rate and the KL are those of Flow-GRPO's SD3.5-medium run: a start, not a result. The
    batch sizes are computed by scripts/memory_table.py, not measured; each divides 48 groups of 24 images on 1, 2, 4 and 8
    GPUs, so that one epoch is the same on all of them.
    """
    config = base.get_config()
    config.policy = policy
    config.model = model
    config.dataset = "dataset/ocr"
    config.max_sequence_length = 128
    config.mixed_precision = "bf16"  # in which their weights are published
    _reward_text(config)
    config.train.drop_zero_advantages = True  # as in ocr_map_sd3
    config.num_gpus = 8
    config.group_size = 24
    return config
