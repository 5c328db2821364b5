"""Three epochs of the tiny run by as many processes as it is launched with; each writes what it saw to FOLDER/RANK.pt.

accelerate launch --config_file scripts/accelerate/KIND.yaml --num_processes 2 tests/training/worker.py FOLDER BATCH_SIZE
"""

import sys
from pathlib import Path

import torch
from tiny_run import get_config

from config.validation import resolve
from flow_grpo.rewards import WeightedScorers
from flow_grpo.training.build import build
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.evaluation import evaluate
from flow_grpo.training.rollout import SDE
from flow_grpo.training.shards import whole_copy
from flow_grpo.training.trainer import Trainer
from flow_grpo.training.update import Updater

NUM_HELD_OUT = 3


def main(folder: Path, batch_size: int) -> None:
    config = get_config()
    config.num_gpus = Distributed.launched_processes()
    config.batch_size = batch_size
    config.run_dir = str(folder / "run")
    config.eval_every = 3
    config.num_eval_prompts = 1  # fewer than processes: one of them has none
    config, geometry = resolve(config, config.num_gpus)
    parts = build(config, geometry, Distributed(config.mixed_precision))
    scored, spread, metrics_of_credit, credit = [], [], [], parts.credit
    weights = [whole_copy(parts.policy.adapter_state(), keep=True)]

    class ListeningScorers(WeightedScorers):
        def submit(self, images, prompts, metadata=None):
            futures = super().submit(images, prompts, metadata)
            (score,) = (future.result() for future in futures.values())
            scored.append((list(prompts), images, score.reward))
            return futures

    class WatchedUpdater(Updater):
        def run(self, trajectories, credit, *arguments, **options):
            spread.append(credit)  # of this process's samples
            metrics = super().run(trajectories, credit, *arguments, **options)
            weights.append(whole_copy(parts.policy.adapter_state(), keep=True))
            return metrics

    def listening_credit(*arguments):
        earned, metrics = credit(*arguments)
        metrics_of_credit.append(metrics)
        return earned, metrics

    parts.scorers.__class__, parts.updater.__class__ = ListeningScorers, WatchedUpdater
    parts.credit = listening_credit
    Trainer(parts).train()
    in_training = [entry for entry in scored if parts.eval_prompts[0] not in entry[0]]

    scored.clear()
    held_out = [prompt.replace("red", "blue") for prompt in in_training[0][0][:1]] * NUM_HELD_OUT
    held_out = [f"{prompt} {index}" for index, prompt in enumerate(held_out)]
    evaluation = evaluate(
        *(parts.policy, held_out, [{}] * NUM_HELD_OUT, parts.scorers, SDE(3, noise_level=0.0)),
        *(batch_size, 1, parts.distributed),
    )
    torch.save(
        {
            "num_processes": parts.distributed.num_processes,
            "module": type(parts.policy.forward_module).__name__,
            "patience": _patience(),
            "sends_buffers": getattr(parts.policy.forward_module, "forward_sync_buffers", False),
            "parameter": type(parts.policy.trainable_parameters()[0]).__name__,
            "prompts": [entry[0] for entry in in_training],
            "images": [entry[1] for entry in in_training],
            "rewards": [entry[2] for entry in in_training],
            "advantages": [credit.advantages for credit in spread],  # of each epoch, (S, B, N)
            "metrics": metrics_of_credit,
            "weights": weights,  # at the start and after each epoch
            "evaluated": [prompt for entry in scored for prompt in entry[0]],
            "evaluation": evaluation.metrics,
        },
        folder / f"{parts.distributed.rank}.pt",
    )


def _patience() -> float | None:
    """The seconds that this process waits for another; None where it is alone."""
    if not torch.distributed.is_initialized():
        return None
    return torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout.total_seconds()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
