"""The documentation keeps up with the code: every option with its default, every link to a file that is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import options
from config.base import Fields
from config.grpo import RUNS
from config.section import leaves

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "dataset/ocr/README.md"]


def test_the_page_of_options_is_what_the_fields_say():
    assert options.PAGE.read_text(encoding="utf-8") == options.page(), "run python -m config.options"


def test_the_help_lists_every_run_and_every_field():
    text = options.help_text()
    assert all(f"  {name} " in text for name in (*RUNS, *leaves(Fields)))
    assert "  sample.sde                      Rule of a stochastic step (flow, cps) [flow]" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository(page):
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)  # a call of an item is no link
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose)
    broken = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert broken == []


def test_every_run_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert len(RUNS) >= 5 and [run for run in RUNS if f"`{run}`" not in text] == []


def test_the_readme_scores_and_draws_the_sample_image_without_a_network(tmp_path):
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Use a scorer\n")[1].split("\n## ")[0]
    code, command = (re.search(rf"^```{kind}\n(.*?)^```$", section, re.M | re.S)[1] for kind in ("python", "bash"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True)
    assert printed.stdout.decode().split("\n")[:2] == ["tensor([1.0000])", "torch.Size([1, 256, 256])"]
    command = command.replace("python ", f"{sys.executable} ").replace("maps.png", str(tmp_path / "maps.png"))
    subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, check=True)
    assert (tmp_path / "maps.png").stat().st_size > 10_000


TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_code_of_a_tutorial_runs(page, tmp_path):
    blocks = re.findall(r'^```python(?: title="(.+?)")?\n(.*?)^```$', page.read_text(encoding="utf-8"), re.M | re.S)
    for name, code in blocks:
        if name:
            (tmp_path / name).write_text(code, encoding="utf-8")
    script = tmp_path / "page.py"
    script.write_text("\n".join(code for name, code in blocks if not name), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, check=True)


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site/tutorials/own-scorer.html").exists()
