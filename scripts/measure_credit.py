"""What is a way of spreading credit worth? Measured on the gradients of one rollout, before any training.

    python scripts/measure_credit.py tiny_ocr_map                                       # ten minutes on one CPU core
    python scripts/measure_credit.py tiny_ocr_map --lora runs/tiny_ocr_map/checkpoint-000005/lora

The gradient of the scalar advantage is unbiased; over many groups of images it is the reference. An arm is a way to spread
the same advantages over tokens. Its figure is the cosine between its gradient on a few groups and the reference on all other
groups. The number of samples that it saves goes as the square of the cosine. docs/measure-credit.md says when to trust it.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import ml_collections
import torch
from tqdm.auto import tqdm

sys.path.insert(
    0, str(Path(__file__).parents[1])
)  # config/ and scripts/ are not installed: they belong to the checkout

from config.grpo import get_config  # noqa: E402
from config.validation import resolve  # noqa: E402
from flow_grpo.rewards import WeightedScorers, make_scorers  # noqa: E402
from flow_grpo.training.build import make_sampler  # noqa: E402
from flow_grpo.training.credit import CreditRule, assign_credit  # noqa: E402
from flow_grpo.training.distributed import Distributed  # noqa: E402
from flow_grpo.training.policies.base import Policy  # noqa: E402
from flow_grpo.training.policies.load import load_policy  # noqa: E402
from flow_grpo.training.records import Scored, TokenMap  # noqa: E402
from flow_grpo.training.rollout import SDE, Trajectories, draw_window, rollout  # noqa: E402
from flow_grpo.training.scoring import PendingScores  # noqa: E402
from scripts.credit.arms import REFERENCE, arms  # noqa: E402
from scripts.credit.fidelity import GROUP_COUNTS, fidelity  # noqa: E402
from scripts.credit.gradients import arm_gradients  # noqa: E402
from scripts.credit.picture import draw  # noqa: E402

ADAM_EPS = torch.optim.AdamW([torch.zeros(1)]).defaults["eps"]
COLUMNS = {
    **{f"cos_{n}": f"cos({n})" for n in GROUP_COUNTS},
    **{"saved": "samples saved", "self_consistency": "self-consistency", "direction": "direction", "rms": "RMS / eps"},
}


def measured_config(config: ml_collections.ConfigDict, num_groups: int, seed: int) -> ml_collections.ConfigDict:
    """A run with that many groups in an epoch, in batches of one group or a part of it; resolved for one process.

    Raises ValueError where there are too few groups to leave some out, and as `resolve`.
    """
    if num_groups < 2 * GROUP_COUNTS[-1]:
        raise ValueError(
            f"{num_groups} groups are too few: {GROUP_COUNTS[-1]} are held against all the others; use 16 or more"
        )
    config = config.copy_and_resolve_references()
    config.num_gpus, config.num_groups, config.seed, config.updates_per_epoch = 1, num_groups, seed, 1
    config.group_size, config.batch_size = config.group_size or 16, config.batch_size or 16
    config.batch_size = max(b for b in range(1, config.batch_size + 1) if config.group_size % b == 0)
    return resolve(config, num_processes=1)[0]


def rollouts(
    config: ml_collections.ConfigDict, policy: Policy, scorers: WeightedScorers, sde: SDE
) -> tuple[list[Trajectories], Scored]:
    """The trajectories of the run's first epoch, group after group, and their scores."""
    sampler = make_sampler(config)
    policy.set_resolution(sampler.size(0))
    scores, trajectories = PendingScores(scorers, policy.token_grid), []
    for batch in tqdm(sampler.epoch(0), desc="rollouts"):
        drawn = rollout(policy, batch.prompts, batch.seeds, sde, config.train.num_steps, batch.start_seeds)
        scores.submit(drawn.images, batch.prompts, batch.metadata, batch.group_ids)
        trajectories.append(drawn)
        if scores.failure:  # now, not after the other rollouts
            raise scores.failure
    scored = scores.collect()
    if scored is None:
        raise scores.failure
    if not scored.maps:
        raise ValueError(
            f"none of {', '.join(config.rewards)} has a map, so there is nothing to compare; add a map scorer"
        )
    return trajectories, scored


def measure(run: ml_collections.ConfigDict, num_groups: int, lora: str | None, seed: int) -> dict:
    """The figures of every arm, over all trained steps and by step; see `scripts.credit.fidelity`."""
    begin = time.perf_counter()
    config = measured_config(run, num_groups, seed)
    device = Distributed().device
    scorers = make_scorers(str(device), config.rewards.to_dict(), config.reward_options.to_dict())
    policy = measured_policy(config, lora, device)
    sample = config.sample
    window = draw_window(sample.sde_window_size, sample.sde_window_range, seed, 0) if sample.sde_window_size else None
    sde = SDE(sample.num_steps, sample.noise_level, sample.sde, window)
    trajectories, scored = rollouts(config, policy, scorers, sde)
    sigmas = trajectories[0].sigmas[:-1].tolist()
    rules = arms(CreditRule(**config.advantage), {token_map.kind for token_map in scored.maps.values()})
    earned = earned_by(rules, scored, sigmas, config, policy.token_grid)  # (arms, S, B, N)
    gradients = arm_gradients(policy, trajectories, earned, num_groups, sde)  # (arms, G, S, K)
    num_parameters = sum(parameter.numel() for parameter in policy.trainable_parameters())
    update_groups = max(1, run.num_groups // run.updates_per_epoch)

    def figures(part: torch.Tensor) -> dict[str, dict[str, float]]:
        return {label: fidelity(part[i], part[0], update_groups, num_parameters) for i, label in enumerate(rules)}

    return {
        "run": run.name,
        "lora": lora,
        "seed": seed,
        "groups": num_groups,
        "images_per_group": config.group_size,
        "reward_mean": float(scored.rewards[scored.valid].mean()),
        "flat_maps": {name: flat_share(token_map) for name, token_map in scored.maps.items()},
        "seconds": time.perf_counter() - begin,
        "arms": figures(gradients.sum(dim=2)),
        "by_step": [{"sigma": sigma, "arms": figures(gradients[:, :, s])} for s, sigma in enumerate(sigmas)],
    }


def measured_policy(config: ml_collections.ConfigDict, lora: str | None, device: torch.device) -> Policy:
    """The run's policy; a fresh adapter stands on top of a trained one, whose weights are merged."""
    torch.manual_seed(config.seed)  # the adapter's initial weights
    policy = load_policy(
        config.policy,
        config.model,
        config.mixed_precision,
        lora=lora,
        resolution=config.resolution,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        guidance_scale=config.sample.guidance_scale,
        max_sequence_length=config.max_sequence_length,
        device=device,
    )
    if config.gradient_checkpointing:
        policy.enable_gradient_checkpointing()
    return policy


def earned_by(
    rules: dict[str, CreditRule],
    scored: Scored,
    sigmas: list[float],
    config: ml_collections.ConfigDict,
    token_grid: tuple[int, int],
) -> torch.Tensor:
    """Every arm's token advantages (arms, S, B, N), of the same scores."""
    weights, num_tokens = config.rewards.to_dict(), token_grid[0] * token_grid[1]
    credits = (assign_credit(scored, sigmas, config.seed, weights, rule, 0.0, token_grid)[0] for rule in rules.values())
    return torch.stack([credit.advantages.expand(-1, -1, num_tokens) for credit in credits])


def flat_share(token_map: TokenMap) -> float:
    """The share of maps that are the same everywhere, and so say nothing of where."""
    spread = token_map.values.amax(dim=1) - token_map.values.amin(dim=1)
    return float((spread < 1e-3).float().mean())


def markdown_table(figures: dict[str, dict[str, float]]) -> str:
    """The arms as rows."""
    rows = [f"| arm | {' | '.join(COLUMNS.values())} |", "|---|" + "---|" * len(COLUMNS)]
    for label, row in figures.items():
        cells = [f"{row[f'cos_{n}']:.3f}" for n in GROUP_COUNTS]
        cells.append(
            "1" if label == REFERENCE else f"{row['saved']:.1f} ({row['saved_low']:.1f} to {row['saved_high']:.1f})"
        )
        cells += [f"{row['self_consistency']:.3f}", f"{row['direction']:.2f}", f"{row['rms'] / ADAM_EPS:.0f}"]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of config/grpo.py")
    parser.add_argument("--lora", help="a checkpoint's lora or lora_ema folder; default: the base model")
    parser.add_argument("--groups", type=int, default=24, help="groups of images; 16 or more; default: %(default)s")
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder for credit.json and credit.png; default: runs/credit/RUN")
    args = parser.parse_args()
    try:
        result = measure(get_config(args.run), args.groups, args.lora, args.seed)
    except ValueError as error:
        parser.error(str(error))
    out = args.out or Path("runs/credit") / args.run
    out.mkdir(parents=True, exist_ok=True)
    (out / "credit.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(result, out / "credit.png")
    print(markdown_table(result["arms"]))
    print(f"{result['seconds']:.0f} seconds; {out}/credit.json and credit.png")


if __name__ == "__main__":
    main()
