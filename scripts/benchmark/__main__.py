"""What things cost. Each cost is a ratio to a reference that was measured in the same run.

python -m scripts.benchmark step     # one epoch with reward maps against the same epoch without
python -m scripts.benchmark ocr      # the OCR engines, serial and in workers, against Flow-GRPO's loop
python -m scripts.benchmark maps     # the CLIP maps against the plain score and two libraries
python -m scripts.benchmark train    # sampling and training: images per second, and the share of a GPU that is used
python -m scripts.benchmark profile  # where the seconds of a step go, by kind of work
"""

import argparse
import json
from pathlib import Path

from scripts.commands import parse_command

COMMANDS = {name: f"scripts.benchmark.{name}" for name in ("step", "ocr", "maps", "train", "profile")}


def main() -> None:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", type=Path, help="also write the figures here")
    args = parse_command(__doc__, "COMMAND", COMMANDS, common)
    figures = args.run(args)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
