"""A checkout runs as it is: nothing of it is installed, so whatever is started finds its folder by itself."""

import re
from pathlib import Path

import pytest

STARTED = 'if __name__ == "__main__":'
SCRIPTS = [path for path in sorted(Path("scripts").glob("*.py")) if STARTED in path.read_text(encoding="utf-8")]
OURS = r"^(?:from|import) (?:flow_grpo|config|scripts|maps_page)\b"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_puts_the_checkout_on_the_path_before_it_imports_from_it(script):
    text = script.read_text(encoding="utf-8")
    imports = re.search(OURS, text, flags=re.MULTILINE)
    assert imports, f"{script} imports nothing of ours: drop it from this test"
    lines = "".join(text[: imports.start()].split())  # the formatter may break the line
    assert "sys.path.insert(0,str(Path(__file__).parents[1]))" in lines
