"""Score the policy on held-out prompts: one fixed noise a prompt, each prompt counted once."""

from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from flow_grpo.rewards import MultiScore
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.image_signals import image_signals
from flow_grpo.training.policies.base import Policy
from flow_grpo.training.rollout import SDE, rollout
from flow_grpo.training.samples import RecordingScore, Sample
from flow_grpo.training.seeds import sample_seed


@dataclass(frozen=True)
class Evaluation:
    """metrics: means over the prompts. samples: of the main process the first, of others none."""

    metrics: dict[str, float]
    samples: list[Sample]


def evaluate(
    policy: Policy,
    prompts: list[str],
    metadata: list[dict[str, Any]],
    score_fn: MultiScore,
    sde: SDE,
    batch_size: int,
    seed: int,
    distributed: Distributed,
    num_samples: int = 16,
) -> Evaluation:
    """Every process takes every num_processes-th prompt; all must call it, all get the same metrics.

    Means are over the images that could be scored; invalid_share is the share of the others.
    """
    own = list(range(distributed.rank, len(prompts), distributed.num_processes))
    most = -(-len(prompts) // distributed.num_processes)  # that any process has
    recording = RecordingScore(score_fn, num_samples if distributed.is_main else 0)
    pending = []
    for start in tqdm(range(0, most, batch_size), desc="evaluation", leave=False, disable=not distributed.is_main):
        indices = own[start : start + batch_size]
        # Filled up, and sampled by a process that has none left, too: another size would be compiled anew, and where the
        # weights lie in parts every process gives its own.
        filled = indices + [0] * (batch_size - len(indices))
        images = rollout(
            policy, [prompts[i] for i in filled], [sample_seed(seed, i) for i in filled], sde, num_kept=0
        ).images
        if not indices:
            continue
        images = images[: len(indices)]
        scores = recording.submit(images, [prompts[i] for i in indices], [metadata[i] for i in indices])
        signals = {f"signal/{name}": values for name, values in image_signals(images).items()}
        pending.append((scores, signals))
    rows = []
    for scores, signals in pending:
        details, extras = scores()
        measured = {"reward": details["avg"], "valid": extras["valid"], **extras["details"], **signals}
        if len(details) > 2:  # each of several rewards by itself; one alone is "reward"
            measured |= {name: values for name, values in details.items() if name != "avg"}
        columns = {name: values.tolist() for name, values in measured.items()}
        rows += [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]
    # Gathered row by row: no prompt is padded in and counted twice, however unevenly they fall.
    every = [row for process_rows in distributed.gather_objects(rows) for row in process_rows]
    valid = [row for row in every if row["valid"]]
    if not valid:
        raise RuntimeError(f"none of the {len(every)} images of an evaluation could be scored; the log has each cause")
    metrics = {f"eval/{name}": sum(row[name] for row in valid) / len(valid) for name in every[0] if name != "valid"}
    metrics["eval/invalid_share"] = 1 - len(valid) / len(every)
    return Evaluation(metrics, recording.samples)
