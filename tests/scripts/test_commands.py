import sys
from types import ModuleType

import pytest

from scripts.commands import parse_command

COMMANDS = {"fly": "own_wing.fly", "swim": "own_wing.not_there"}


@pytest.fixture
def called(monkeypatch):
    """called(*words): the arguments of a wing whose second command cannot be imported."""

    def add_arguments(parser):
        parser.add_argument("--height", type=int)
        parser.set_defaults(run=print)

    monkeypatch.setitem(sys.modules, "own_wing", ModuleType("own_wing"))
    fly = ModuleType("own_wing.fly", "Fly.")
    fly.add_arguments = add_arguments
    monkeypatch.setitem(sys.modules, "own_wing.fly", fly)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["__main__.py", *words])
        return parse_command("A wing.", "COMMAND", COMMANDS)

    return call


def test_only_the_command_that_is_given_is_imported(called):
    args = called("fly", "--height", "3")
    assert args.height == 3 and args.run is print
    with pytest.raises(ModuleNotFoundError, match="own_wing.not_there"):
        called("swim")


@pytest.mark.parametrize(("words", "says"), [([], "required: COMMAND"), (["walk"], "choose from")])
def test_a_missing_or_unknown_command_is_refused_without_any_import(called, capsys, words, says):
    with pytest.raises(SystemExit):
        called(*words)
    said = capsys.readouterr().err
    assert says in said and "usage: python -m own_wing" in said


def test_the_help_imports_no_command(called, capsys):
    with pytest.raises(SystemExit):
        called("--help")
    assert "A wing." in capsys.readouterr().out
