"""What each evaluation measured prompt by prompt, on disk, and the alarms that ring over it."""

from collections.abc import Mapping, Sequence
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
    watched = [name for name in values if name in SIGNALS or (name.startswith("gold/") and name.count("/") == 1)]
    ringing = alarms(history, watched)
    if len(history) < 2:
        return {}, []
    rung = {alarm.measure for alarm in ringing}
    return {f"alarm/{name}": float(name in rung) for name in watched}, ringing
