"""What things cost, each as a ratio to a reference in the same run.

python -m scripts.benchmark step     # one epoch with reward maps against the same epoch without
python -m scripts.benchmark ocr      # the OCR engines, serial and in workers, against Flow-GRPO's loop
python -m scripts.benchmark maps     # the CLIP maps against the plain score and two libraries
python -m scripts.benchmark train    # sampling and training: images per second, and on a GPU how much of it is used
"""

import argparse
import json
from pathlib import Path

from scripts.benchmark import maps as benchmark_maps
from scripts.benchmark import ocr as benchmark_ocr
from scripts.benchmark import step as benchmark_step
from scripts.benchmark import train as benchmark_train

COMMANDS = {"step": benchmark_step, "ocr": benchmark_ocr, "maps": benchmark_maps, "train": benchmark_train}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    figures = args.run(args)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
