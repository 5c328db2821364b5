"""Starts a run: claims its folder, finds its checkpoint, and checks that it trains on what it began with."""

from pathlib import Path
from typing import Any, TextIO

import ml_collections

from config import base
from flow_grpo.training import checkpoint, resume, run_folder
from flow_grpo.training.checkpoint import Origin
from flow_grpo.training.data import load_metadata, load_prompts
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.evaluation_log import EVALUATIONS
from flow_grpo.training.identity import prompts_identity
from flow_grpo.training.json_lines import read_rows


def dataset_identity(dataset: str) -> str:
    """A hash of the prompts and metadata of both splits, train and test."""
    return prompts_identity(
        *((load_prompts(dataset, split), load_metadata(dataset, split)) for split in ("train", "test"))
    )


def claimed_folder(config: ml_collections.ConfigDict, distributed: Distributed) -> TextIO | None:
    """The lock on the run's folder; None in the other processes. resume_from=latest does not create a missing folder."""
    run_dir, lock, failure = Path(config.run_dir), None, None
    if distributed.is_main and (config.resume_from != "latest" or run_dir.is_dir()):
        try:
            lock = run_folder.claim(run_dir)
        except ValueError as error:
            failure = error
    distributed.settle(failure)
    return lock


def found_checkpoint(
    config: ml_collections.ConfigDict, identities: dict[str, str], distributed: Distributed
) -> tuple[Path | None, Origin]:
    """The checkpoint that the run goes on from, and the origin that it records. The main process prints which one it is."""
    run_dir = Path(config.run_dir)
    if not config.resume_from:
        if checkpoint.list_checkpoints(run_dir):
            raise ValueError(
                f"{run_dir} already holds a run; go on with it by --config.resume_from=latest, "
                "or choose another --config.run_dir"
            )
        return None, Origin()
    path = resume.find_checkpoint(run_dir, config.resume_from)
    resume.check_branch(run_dir, path)
    epoch, origin = resume.saved_epoch(path), checkpoint.read_origin(path)
    changed = resume.changed_fields(path, config.to_dict(), base.get_config().to_dict(), identities, origin)
    is_over = epoch is not None and epoch >= config.num_epochs
    if is_over and not _lacks_last_evaluation(config, path, epoch):
        raise ValueError(f"{path} has all {config.num_epochs} epochs; raise --config.num_epochs to go on")
    if distributed.is_main:
        print(_going_on(path, changed), flush=True)
    meant = [
        {"epoch": epoch, "field": name, "was": was, "now": now}
        for name, (was, now) in changed.items()
        if not resume.may_change(name)
    ]
    return path, Origin(origin.identities, origin.changes + meant)


def _lacks_last_evaluation(config: ml_collections.ConfigDict, path: Path, epoch: int) -> bool:
    """Whether a run has all epochs, but was stopped before the evaluation at its end."""
    run_dir = Path(config.run_dir)
    if not config.eval_every or epoch != config.num_epochs or path.parent.resolve() != run_dir.resolve():
        return False
    return all(row["epoch"] != epoch for row in read_rows(run_dir / EVALUATIONS))


def known_origin(
    config: ml_collections.ConfigDict,
    resume_path: Path | None,
    origin: Origin,
    identities: dict[str, str],
    distributed: Distributed,
) -> Origin:
    """The origin that the run's own checkpoints will record. It needs the model's identity, so the model is loaded first.

    Raises ValueError where processes have loaded different models or prompts, and where a resumed run has another model
    than it began with.
    """
    for rank, other in enumerate(distributed.gather_objects(identities)):
        for name in identities:
            if other[name] != identities[name]:
                raise ValueError(
                    f"process {rank} and this one, {distributed.rank}, have read another {name}; see that all read one folder"
                )
    was, now = origin.identities.get("model", identities["model"]), identities["model"]
    if resume_path is None or was == now:
        return Origin(identities, origin.changes)
    change = {"model": (f"weights {was[:12]}", f"weights {now[:12]} of {config.model}")}
    resume.refuse_changes(resume_path, change, config.allow_changes)
    meant = {"epoch": resume.saved_epoch(resume_path), "field": "model", "was": was, "now": now}
    return Origin(identities, [*origin.changes, meant])


def _going_on(path: Path, changed: dict[str, tuple[Any, Any]]) -> str:
    """The text that a resumed run prints about itself."""
    says = f"going on from {path}"
    if changed := {name: values for name, values in changed.items() if name != "resume_from"}:
        says += " with " + ", ".join(f"{name} {now} (was {was})" for name, (was, now) in changed.items())
    if changed.keys() & {"num_gpus", "batch_size"}:
        says += "; samples, groups and optimizer steps stay the same, up to rounding"
    return says
