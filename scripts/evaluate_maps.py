"""Which map points at what the prompt says? Each map against the masks of held-out pairs of the signs world.

    python scripts/evaluate_maps.py                                    # every map on models/tiny-clip
    python scripts/evaluate_maps.py --scorer ocr_map clip_gradcam my_rewards:Sharpness      # do they see damage?
    python scripts/evaluate_maps.py --maps clip_gradcam random --num-scenes 50 --json maps.json

Each scene shows two shapes and is asked for each of them ("a red circle"), so a map that is not about the prompt cannot win:

    pointing    the map's largest value lies on the shape asked for (the mean over ties)
    energy      the share of the map's sum that lies on it
    AUROC       a pixel of it outranks a pixel that is not
    selection   its mean is above the other shape's (a tie counts half): text conditioning alone
    deletion    the score's area as pixels are blanked from the map's highest on: low is good
    insertion   the same as pixels are shown: high is good; both as shares between the blank's and the image's mean score

Deletion and insertion do not ask which shape was meant: never choose a map by them alone.

--scorer audits any scorer that has a map, a user's own too: `scripts.audit.damage` paints over a letter, a sign or a shape, and
asks whether the map falls there and nowhere else.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/ is not installed: it belongs to the checkout

from flow_grpo.clip.load import load_clip  # noqa: E402
from flow_grpo.clip.model import ClipModel  # noqa: E402
from flow_grpo.reward_map import gaussian_blur  # noqa: E402
from flow_grpo.scorers import make_scorer, scorer_names  # noqa: E402
from scripts.audit.damage import DAMAGES, audit, damaged_scenes  # noqa: E402
from scripts.audit.damage import METRICS as AUDIT_METRICS  # noqa: E402
from scripts.pretrain.signs_world import HELD_OUT, make_pair  # noqa: E402

BATCH_SIZE = 100
METRICS = ("pointing", "energy", "auroc", "selection", "deletion", "insertion")
FRACTIONS = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the pixels, blanked or shown; a shape covers about 1 / 14


def pair_queries(num_scenes: int) -> tuple[Tensor, list[str], Tensor, Tensor]:
    """Both queries of each held-out pair, N = 2 * num_scenes.

    Returns images (N, 3, H, W) in [0, 1], prompts, and masks (N, H, W) bool of the shape asked for and of the other one.
    """
    images, prompts, asked, other = [], [], [], []
    for seed in range(HELD_OUT, HELD_OUT + num_scenes):
        scene = make_pair(seed)
        for one, two in (scene.objects, scene.objects[::-1]):
            images.append(scene.image)
            prompts.append(f"a {one.name}")
            asked.append(one.mask)
            other.append(two.mask)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return pixels, prompts, torch.from_numpy(np.stack(asked)), torch.from_numpy(np.stack(other))


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of each map's largest values that lie in its mask; maps (N, H, W), masks (N, H, W) bool. Returns (N,)."""
    largest = maps == maps.amax(dim=(1, 2), keepdim=True)
    return (largest & masks).sum(dim=(1, 2)) / largest.sum(dim=(1, 2))


def energy_in_mask(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of each map's sum that lies in its mask; an all-zero map has none there. Returns (N,)."""
    total = maps.sum(dim=(1, 2))
    return (maps * masks).sum(dim=(1, 2)) / total.clamp_min(torch.finfo(maps.dtype).tiny)


def auroc(maps: Tensor, masks: Tensor) -> Tensor:
    """How often a pixel of the mask outranks one outside, ties counting half: Mann-Whitney's U. Returns (N,)."""
    values, inside = maps.flatten(1).contiguous(), masks.flatten(1)
    ordered = values.sort(dim=1).values
    below, up_to = (torch.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    ranks = (below + up_to + 1).double() / 2  # from 1, the mean over ties
    num_inside = inside.sum(1).double()
    statistic = (ranks * inside).sum(1) - num_inside * (num_inside + 1) / 2
    return statistic / (num_inside * (inside.shape[1] - num_inside))


def selection(maps: Tensor, asked: Tensor, other: Tensor) -> Tensor:
    """1 where the map's mean over the shape asked for is above its mean over the other, 0.5 where they tie. Returns (N,)."""
    one, two = ((maps * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)) for mask in (asked, other))
    return (one > two).float() + 0.5 * (one == two).float()


def deletion_and_insertion(
    maps: Tensor, images: Tensor, prompts: Sequence[str], score: Callable[[Tensor, Sequence[str]], Tensor]
) -> tuple[float, float]:
    """Area under the mean score while pixels are blanked, or shown on a blank, from the map's highest on (arXiv:1806.07421).

    A blank pixel has its image's mean colour. score(images, prompts) -> (B,). 0 is the blank's mean score, 1 the image's.
    """
    blank = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    # A stable order, or a map's ties would be blanked in an order of their own.
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1).view_as(maps)[:, None]  # (N, 1, H, W) 0: the highest
    whole, nothing = score(images, prompts).mean(), score(blank, prompts).mean()
    deleted, inserted = [whole], [nothing]
    for fraction in FRACTIONS[1:-1]:
        top = rank < fraction * maps[0].numel()
        deleted.append(score(torch.where(top, blank, images), prompts).mean())
        inserted.append(score(torch.where(top, images, blank), prompts).mean())
    curves = torch.stack([torch.stack([*deleted, nothing]), torch.stack([*inserted, whole])])  # (2, fractions)
    areas = torch.trapezoid((curves - nothing) / (whole - nothing), torch.tensor(FRACTIONS))
    return areas[0].item(), areas[1].item()


def random_map(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.rand(len(images), *images.shape[2:], generator=torch.Generator().manual_seed(1))


def centre_map(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A Gaussian at the middle, a quarter of the image wide."""
    height, width = images.shape[2:]
    y, x = (((torch.arange(size) + 0.5) / size - 0.5) / 0.25 for size in (height, width))
    return torch.exp(-0.5 * (y[:, None] ** 2 + x[None] ** 2)).expand(len(images), height, width)


def edge_map(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The colour's gradient, summed over channels and blurred by 2 pixels: where anything at all is drawn."""
    down, right = (images.diff(dim=dim, append=images.narrow(dim, -1, 1)).abs().sum(1) for dim in (2, 3))
    return gaussian_blur(down + right, 2.0)


CONTROLS = {"random": random_map, "centre": centre_map, "edges": edge_map}

# label -> scorer and its options
MAPS = {
    "clip_decomposition": ("clip_decomposition", {}),
    "clip_attention:rollout": ("clip_attention", {"rollout": True}),
    "clip_attention": ("clip_attention", {}),
    "clip_gradcam": ("clip_gradcam", {}),
    "clip_gradient:blur": ("clip_gradient", {"blur_sigma": 3.0}),
    "clip_gradient": ("clip_gradient", {}),
    "clip_attention:plain-rollout": ("clip_attention", {"rollout": True, "gradient_weighted": False}),
    "clip_attention:plain": ("clip_attention", {"gradient_weighted": False}),
}


KNOWN_MAPS = {*MAPS, *CONTROLS, *(name for name, _ in MAPS.values())}


def scored_maps(label: str, clip: ClipModel, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Maps (N, H, W) in [0, 1], high where the prompt's shape should be.

    label: one of MAPS or CONTROLS, or a CLIP scorer by the name that make_scorer knows.
    """
    if label in CONTROLS:
        return CONTROLS[label](images, prompts)
    name, options = MAPS.get(label, (label, {}))
    scorer = make_scorer(name, model=clip, **options)
    maps = in_batches(lambda *batch: scorer(*batch).reward_map, images, prompts)
    # clip_gradient is low where the score hangs on a pixel, the others are high
    return 1 - maps if name == "clip_gradient" else maps


def in_batches(fn: Callable[[Tensor, Sequence[str]], Tensor], images: Tensor, prompts: Sequence[str]) -> Tensor:
    starts = range(0, len(images), BATCH_SIZE)
    return torch.cat([fn(images[i : i + BATCH_SIZE], prompts[i : i + BATCH_SIZE]) for i in starts])


def evaluate(clip: ClipModel, labels: Sequence[str], num_scenes: int) -> dict[str, dict[str, float]]:
    """{map: {metric: mean over both queries of each held-out pair}}."""
    images, prompts, asked, other = pair_queries(num_scenes)

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return in_batches(lambda *batch: clip.trace(*batch).logits, images, prompts)

    results = {}
    for label in tqdm(labels, desc="maps"):
        maps = scored_maps(label, clip, images, prompts)
        deletion, insertion = deletion_and_insertion(maps, images, prompts, score)
        results[label] = {
            "pointing": pointing_game(maps, asked).mean().item(),
            "energy": energy_in_mask(maps, asked).mean().item(),
            "auroc": auroc(maps, asked).mean().item(),
            "selection": selection(maps, asked, other).mean().item(),
            "deletion": deletion,
            "insertion": insertion,
        }
    return results


def audited(names: Sequence[str], clip_model: str, num_scenes: int) -> dict[str, dict[str, float]]:
    """{"scorer, damage": figures} of every scorer by its name, on the same damaged scenes."""
    clip = load_clip(clip_model) if any(name.startswith("clip_") for name in names) else None
    scorers = {name: make_scorer(name, **({"model": clip} if name.startswith("clip_") else {})) for name in names}
    results = {}
    for kind in DAMAGES:
        scenes = damaged_scenes(kind, num_scenes)
        for name, scorer in tqdm(scorers.items(), desc=kind):
            results[f"{name}, {kind}"] = audit(scorer, scenes, auroc, high_is_good=name != "clip_gradient")
    return results


def markdown_table(results: dict[str, dict[str, float]], metrics: Sequence[str] = METRICS) -> str:
    header = f"| map | {' | '.join(metrics)} |\n|---|{'---|' * len(metrics)}"
    rows = (f"| {label} | {' | '.join(f'{row[m]:.3f}' for m in metrics)} |" for label, row in results.items())
    return "\n".join([header, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="models/tiny-clip", help="any CLIP that load_clip knows; default: %(default)s"
    )
    parser.add_argument(
        "--num-scenes", type=_count, default=200, help="each is asked for both of its shapes; default: %(default)s"
    )
    parser.add_argument("--maps", nargs="+", metavar="MAP", help=f"of {', '.join((*MAPS, *CONTROLS))}; default: all")
    parser.add_argument(
        "--scorer", nargs="+", metavar="NAME", help="audit these scorers: registered ones, or package.module:factory"
    )
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    args.scorer, args.maps = scorer_names(args.scorer or []), scorer_names(args.maps or [])
    if args.scorer and args.maps:
        parser.error("--scorer audits scorers and --maps compares CLIP's maps; give one of them")
    if unknown := sorted(set(args.maps) - KNOWN_MAPS):
        parser.error(f"--maps does not know {', '.join(unknown)}; it knows {', '.join(sorted(KNOWN_MAPS))}")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json {args.json}: there is no folder {args.json.parent}; make it first")
    if args.scorer:
        results = audited(args.scorer, args.model, args.num_scenes)
    else:
        results = evaluate(load_clip(args.model), args.maps or (*MAPS, *CONTROLS), args.num_scenes)
    print(markdown_table(results, AUDIT_METRICS if args.scorer else METRICS))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text}")
    return int(text)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError) as error:
        sys.exit(f"evaluate_maps.py: {error}")
