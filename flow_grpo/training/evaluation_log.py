"""Stores on disk what each evaluation measured per prompt, and finds the alarms that ring over it."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from flow_grpo.training.alarm import Alarm, alarms
from flow_grpo.training.json_lines import append_row, read_rows

EVALUATIONS = "evaluations.jsonl"
# Watched beside the gold rewards. Both fall when the policy empties a scene in favour of its text.
SIGNALS = ("signal/edge_density", "signal/colour_entropy")


def log_evaluation(
    run_dir: Path, epoch: int, values: Mapping[str, Sequence[float | None]]
) -> tuple[dict[str, float], list[Alarm]]:
    """Write an evaluation down, and compare it with the earlier ones.

    values: {measure: one value per prompt}; None where the image could not be scored. `reward` is the trained reward.
    Returns {alarm/<measure>: 1 where it rings, else 0} for all watched measures, and the alarms.
    """
    append_row(run_dir / EVALUATIONS, {"epoch": epoch, "values": values})
    history = [(row["epoch"], row["values"]) for row in read_rows(run_dir / EVALUATIONS)]
    watched = _watched(values)
    ringing = alarms(history, watched)
    if len(history) < 2:
        return {}, []
    rung = {alarm.measure for alarm in ringing}
    return {f"alarm/{name}": float(name in rung) for name in watched}, ringing


def _watched(names: Collection[str]) -> list[str]:
    """The signals and the gold rewards, without the other measures of a gold scorer: gold/ocr, but not gold/ocr/exact.

    The name of a scorer may itself hold a slash: gold/remote:http://10.0.0.5:8000.
    """
    gold = [name for name in names if name.startswith("gold/")]
    details = {name for name in gold if any(name.startswith(f"{other}/") for other in gold)}
    return [name for name in names if name in SIGNALS or (name in gold and name not in details)]
