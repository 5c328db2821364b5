"""Do reward maps help? The arms differ only in where the credit goes. Each is trained with several seeds on the signs world.

python -m scripts.study run --arms scalar own rolled --seeds 1 2 3     # goes on where the results file ends
python -m scripts.study report                                         # tables, plots, intervals over seeds

runs.py names the arms, with their size and their fields. Each finished run is one line of the results file, and is not run
again; so the file can be committed while it grows. To sweep the learning rate, use
`run --seeds 0 --learning-rates 2e-4 5e-4 1e-3`. The report then takes the rate that is best on seed 0 for each arm, and shows
its other seeds.
"""

from scripts.commands import parse_command

COMMANDS = {"run": "scripts.study.launch", "report": "scripts.study.report"}


def main() -> None:
    args = parse_command(__doc__, "COMMAND", COMMANDS)
    args.run(args)


if __name__ == "__main__":
    main()
