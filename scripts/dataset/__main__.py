"""Write the prompts that the named runs train on.

python -m scripts.dataset ocr      # dataset/ocr: 20,000 prompts with a quoted text, and 1,000 held out
python -m scripts.dataset several  # dataset/several: prompts with 2 to 5 quoted texts and their places
python -m scripts.dataset signs    # dataset/signs: captions of the signs world, for the tiny models
"""

import argparse

from scripts.dataset import ocr, several, signs

COMMANDS = {"ocr": ocr, "several": several, "signs": signs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="DATASET")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
