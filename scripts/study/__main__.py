"""Do reward maps help? Arms that differ in nothing but where the credit goes, over seeds, on the signs world.

python -m scripts.study run --arms scalar own rolled --seeds 1 2 3     # goes on where the results file ends
python -m scripts.study report                                         # tables, plots, intervals over seeds

An arm is named in arms.py, its size and its flags in runs.py. Each finished run is one line of the results file, so that
the file can be committed as it grows; a run that is in it is not run again. A learning-rate sweep is
`run --seeds 0 --learning-rates 2e-4 5e-4 1e-3`: the report takes each arm's best rate on seed 0, and its other seeds.
"""

from scripts.commands import parse_command
from scripts.study import launch, report

COMMANDS = {"run": launch, "report": report}


def main() -> None:
    args = parse_command(__doc__, "COMMAND", COMMANDS)
    args.run(args)


if __name__ == "__main__":
    main()
