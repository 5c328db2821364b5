"""What each CLIP map costs, as a ratio to the plain score and to a library's Grad-CAM.

The model is ViT-L/14 with random weights: the values of the weights do not change the cost. The plain score runs the image
tower and head of transformers under no_grad, with prompts that were embedded before. "with its prompts" embeds them in
every call, as Flow-GRPO's scorer does. All rows share weights, preprocessing and images. The libraries explain what the
last block reads, as clip_gradcam does: torchcam, and pytorch-grad-cam if it is installed.

Memory is the peak of a fresh process that calls its row twice. On the CPU it is that of the whole process, with weights and
libraries; on a GPU that of torch's allocator. Seconds are taken in one process; the rows take turns.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from flow_grpo.clip.from_transformers import take_apart
from flow_grpo.clip.map_scorer import score_together
from flow_grpo.clip.model import ClipModel
from flow_grpo.scorers import make_scorer

PLAIN, TORCHCAM, GRAD_CAM = "plain score", "torchcam Grad-CAM", "pytorch-grad-cam Grad-CAM"
WITH_PROMPTS = "plain score with its prompts"
# row -> the scorers of its one pass, with their options
MAPS = {
    "clipscore": [("clipscore", {})],
    "clip_gradcam": [("clip_gradcam", {})],
    "clip_attention": [("clip_attention", {})],
    "clip_decomposition": [("clip_decomposition", {})],
    "these three in one pass": [("clip_gradcam", {}), ("clip_attention", {}), ("clip_decomposition", {})],
    "clip_attention, plain rollout": [("clip_attention", {"rollout": True, "gradient_weighted": False})],
    "clip_attention, rollout": [("clip_attention", {"rollout": True})],
    "clip_gradient": [("clip_gradient", {})],
}
# openai/clip-vit-large-patch14, and the same model in small to try the benchmark itself on
CONFIGS = {
    "vit-l-14": {
        "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
        "vision_config": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
            "image_size": 224, "patch_size": 14,
        },
        "projection_dim": 768,
    },
    "tiny": {
        "text_config": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2},
        "vision_config": {
            "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3,
            "image_size": 56, "patch_size": 14,
        },
        "projection_dim": 32,
    },
}  # fmt: skip


class Scores(nn.Module):
    """Preprocessed pixels (B, 3, H, W) -> the logit of each image against each text (B, B), by transformers' own forward."""

    def __init__(self, model: nn.Module, texts: Tensor):
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection
        self.register_buffer("texts", texts.to(model.dtype))  # (B, E)
        self.logit_scale = model.logit_scale.exp().item()

    def forward(self, pixels: Tensor) -> Tensor:
        embeds = self.visual_projection(self.vision_model(pixels).pooler_output)
        return self.logit_scale * F.normalize(embeds, dim=1) @ self.texts.T


class Bench:
    """One model and batch, and every row as a function of nothing."""

    def __init__(self, args: argparse.Namespace):
        model, tokenizer = make_model(args.model)
        self.model = model.to(args.device, getattr(torch, args.dtype)).eval()
        self.parts = take_apart(self.model, tokenizer, torch.device(args.device))
        self.clip = ClipModel(self.parts)
        torch.manual_seed(0)
        self.images = torch.rand(args.batch, 3, args.size, args.size).to(args.device)
        self.prompts = ["".join(chr(97 + (7 * i + j) % 26) for j in range(60)) for i in range(args.batch)]
        self.scores = Scores(self.model, self.clip.embed_texts(self.prompts)[0])

    def row(self, name: str) -> Callable[[], Tensor]:
        """Logits (B,) of the plain score, or maps (B, ., .) of the others' first."""
        if name in MAPS:
            return self._ours(MAPS[name])
        return {
            PLAIN: self._plain,
            WITH_PROMPTS: self._with_prompts,
            TORCHCAM: self._torchcam,
            GRAD_CAM: self._grad_cam,
        }[name]

    def _ours(self, scorers) -> Callable[[], Tensor]:
        built = [make_scorer(name, model=self.clip, **options) for name, options in scorers]
        if scorers[0][0] == "clipscore":
            return lambda: built[0](self.images, self.prompts).reward
        return lambda: score_together(built, self.images, self.prompts)[0].reward_map

    def _pixels(self) -> Tensor:
        return self.clip.preprocess(self.images).to(self.model.dtype)

    def _plain(self) -> Tensor:
        with torch.no_grad():
            return self.scores(self._pixels()).diagonal()

    def _with_prompts(self) -> Tensor:
        with torch.no_grad():
            texts = self.parts.embed_texts(self.prompts)[0]
            return Scores(self.model, F.normalize(texts, dim=1))(self._pixels()).diagonal()

    def _torchcam(self) -> Tensor:
        from torchcam.methods import GradCAM

        layer = f"vision_model.encoder.layers.{self.clip.tower.num_blocks - 1}.layer_norm1"
        with GradCAM(self.scores, layer, reshape_transform=self._to_grid) as extractor:
            return extractor(list(range(len(self.images))), self.scores(self._pixels()))[0]

    def _grad_cam(self) -> Tensor:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        layers = [self.scores.vision_model.encoder.layers[-1].layer_norm1]
        with GradCAM(model=self.scores, target_layers=layers, reshape_transform=self._to_grid) as extractor:
            targets = [ClassifierOutputTarget(index) for index in range(len(self.images))]
            maps = extractor(input_tensor=self._pixels(), targets=targets)
        self.model.zero_grad()  # it leaves the gradient of every weight behind
        return torch.from_numpy(maps)

    def _to_grid(self, tokens: Tensor) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).unflatten(2, self.clip.tower.grid)  # (B, D, rows, cols)


def make_model(name: str):
    """A CLIPModel of CONFIGS with random weights, and a tokenizer that spells prompts letter by letter up to 77 tokens."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = [f"{letter}{end}" for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}  # as the models of OpenAI have them
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(**CONFIGS[name])), CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def peak_mib(name: str, args: argparse.Namespace) -> float:
    """The most memory that this process has held, by when it has run one row: to be called in a fresh one. Linux only."""
    torch.set_num_threads(args.threads)
    run = Bench(args).row(name)
    for _ in range(2):
        run()
    if args.device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    # not getrusage's: that one begins with the peak of the process that started this one
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[1]) / 1024


def peaks(names: list[str], args: argparse.Namespace) -> dict[str, float]:
    """Each row's, in MiB."""
    found = {}
    for name in tqdm(names, desc="memory"):
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            found[name] = pool.submit(peak_mib, name, args).result()
    return found


def seconds(names: list[str], args: argparse.Namespace) -> dict[str, list[float]]:
    """Each row's in every round, after one round to warm up."""
    bench = Bench(args)
    rows = {name: bench.row(name) for name in names}
    taken = {name: [] for name in names}
    for _ in tqdm(range(args.repeats + 1), desc="rounds"):
        for name, run in rows.items():
            _synchronize(args.device)
            started = time.perf_counter()
            run()
            _synchronize(args.device)
            taken[name].append(time.perf_counter() - started)
    return {name: each[1:] for name, each in taken.items()}


def ratio(taken: dict[str, list[float]], name: str, reference: str) -> float:
    """The median over rounds of each round's own; nan where there is no such row."""
    if reference not in taken:
        return float("nan")
    return statistics.median(one / other for one, other in zip(taken[name], taken[reference], strict=True))


def benchmark_maps(args: argparse.Namespace) -> dict:
    torch.set_num_threads(args.threads)
    names = [PLAIN, WITH_PROMPTS, *MAPS, TORCHCAM]
    if find_spec("pytorch_grad_cam"):
        names.append(GRAD_CAM)
    else:
        print(f"without {GRAD_CAM!r}: pip install grad-cam, which brings torchvision and an OpenCV", file=sys.stderr)
    memory, taken = peaks(names, args), seconds(names, args)
    print(f"\n{args.model}, batch {args.batch}, {args.device} {args.dtype}, median of {args.repeats} rounds")
    print(f"{'':<31}{'seconds':>9}{'/ plain':>9}{'/ torchcam':>12}{'/ grad-cam':>12}{'peak MiB':>10}{'/ plain':>9}")
    figures = {}
    for name in names:
        row = figures[name] = {"seconds": statistics.median(taken[name]), "peak_mib": memory[name]}
        row |= {f"/ {reference}": ratio(taken, name, reference) for reference in (PLAIN, TORCHCAM, GRAD_CAM)}
        row["peak / plain score"] = memory[name] / memory[PLAIN]
        print(
            f"{name:<31}{row['seconds']:>9.3f}{row[f'/ {PLAIN}']:>9.2f}{row[f'/ {TORCHCAM}']:>12.2f}"
            f"{row[f'/ {GRAD_CAM}']:>12.2f}{row['peak_mib']:>10.0f}{row['peak / plain score']:>9.2f}"
        )
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=CONFIGS, default="vit-l-14", help='"tiny" only tries the benchmark out')
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the towers")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each runs every row once")
    parser.set_defaults(run=benchmark_maps)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
