"""What each evaluation measured prompt by prompt, on disk, and the alarms that ring over it."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from flow_grpo.training.alarm import Alarm, alarms
from flow_grpo.training.json_lines import append_row, read_rows

EVALUATIONS = "evaluations.jsonl"
# Beside the gold rewards; both fall where a scene is emptied for the sake of its text.
SIGNALS = ("signal/edge_density", "signal/colour_entropy")


def log_evaluation(
    run_dir: Path, epoch: int, values: Mapping[str, Sequence[float | None]]
) -> tuple[dict[str, float], list[Alarm]]:
    """Write an evaluation down and hold it against the earlier ones.

    values: by measure, one per prompt, None where it could not be scored; `reward` is the trained one.
    Returns {alarm/<measure>: 1 where it rings, else 0} of all that is watched, and the alarms.
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
    """The signals and the gold rewards, without what a gold scorer measured on the way: gold/ocr, and not gold/ocr/exact.

    A scorer's own name may hold a slash: gold/remote:http://10.0.0.5:8000.
    """
    gold = [name for name in names if name.startswith("gold/")]
    details = {name for name in gold if any(name.startswith(f"{other}/") for other in gold)}
    return [name for name in names if name in SIGNALS or (name in gold and name not in details)]
