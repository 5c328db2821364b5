"""Write the prompts that the named runs train on.

python -m scripts.dataset ocr      # dataset/ocr: 20,000 prompts with a quoted text, and 1,000 held out
python -m scripts.dataset ocr_zh   # dataset/ocr_zh: 1,000 Chinese prompts with one or two quoted texts, and 200 held out
python -m scripts.dataset several  # dataset/several: prompts with 2 to 5 quoted texts and their places
python -m scripts.dataset signs    # dataset/signs: captions of the signs world, for the tiny models
"""

from scripts.commands import parse_command

COMMANDS = {name: f"scripts.dataset.{name}" for name in ("ocr", "ocr_zh", "several", "signs")}


def main() -> None:
    args = parse_command(__doc__, "DATASET", COMMANDS)
    args.run(args)


if __name__ == "__main__":
    main()
