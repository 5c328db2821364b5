"""Write the prompts that the named runs train on.

python -m scripts.dataset ocr      # dataset/ocr: 20,000 prompts with a quoted text, and 1,000 held out
python -m scripts.dataset several  # dataset/several: prompts with 2 to 5 quoted texts and their places
python -m scripts.dataset signs    # dataset/signs: captions of the signs world, for the tiny models
"""

from scripts.commands import parse_command
from scripts.dataset import ocr, several, signs

COMMANDS = {"ocr": ocr, "several": several, "signs": signs}


def main() -> None:
    args = parse_command(__doc__, "DATASET", COMMANDS)
    args.run(args)


if __name__ == "__main__":
    main()
