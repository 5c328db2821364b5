"""The command line of a wing of scripts: python -m scripts.WING COMMAND, each command a module of the wing."""

import argparse
import importlib
import sys
from collections.abc import Mapping


def parse_command(
    description: str, metavar: str, modules: Mapping[str, str], common: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """The arguments of the command that was given; their `run` is its function.

    modules: {command: the name of its module}. A module has a docstring and `add_arguments(parser)`, which sets the default
        of `run`. Only that of the given command is imported: it may bring torch and diffusers, which take seconds.
    common: arguments that every command takes.
    """
    look = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    wing = next(iter(modules.values())).rpartition(".")[0]  # argparse would say __main__.py
    parser = argparse.ArgumentParser(prog=f"python -m {wing}", description=description, **look)
    commands = parser.add_subparsers(required=True, metavar=metavar)
    for name, path in modules.items():
        if name not in sys.argv[1:2]:
            commands.add_parser(name)
            continue
        module = importlib.import_module(path)
        command = commands.add_parser(name, description=module.__doc__, parents=[common] if common else [], **look)
        module.add_arguments(command)
    return parser.parse_args()
