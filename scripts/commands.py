"""The command line of a wing of scripts: python -m scripts.WING COMMAND, each command a module of the wing."""

import argparse
from collections.abc import Mapping
from types import ModuleType


def parse_command(
    description: str, metavar: str, modules: Mapping[str, ModuleType], common: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """The arguments of the command that was given; their `run` is its function.

    modules: {command: its module}, with a docstring and `add_arguments(parser)`, which sets the default of `run`.
    common: arguments that every command takes.
    """
    look = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    wing = f"python -m {next(iter(modules.values())).__package__}"  # argparse would say __main__.py
    parser = argparse.ArgumentParser(prog=wing, description=description, **look)
    commands = parser.add_subparsers(required=True, metavar=metavar)
    for name, module in modules.items():
        module.add_arguments(
            commands.add_parser(name, description=module.__doc__, parents=[common] if common else [], **look)
        )
    return parser.parse_args()
