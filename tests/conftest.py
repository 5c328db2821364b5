"""Shared by all tests: the real OCR engine, loaded once, and images of drawn text."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

# Before torch is imported: its spinning threads slow a neighbouring OCR engine many times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageDraw, ImageFont

from flow_grpo.text_maps.engine import make_engine

ROOT = Path(__file__).parents[1]

# The same examples in every run: a change fails where it was made, and not another one by chance.
# pytest --hypothesis-profile=default looks for new ones.
settings.register_profile("same examples", derandomize=True, deadline=None)
settings.load_profile("same examples")


def pytest_runtest_setup():
    """Before a test's fixtures are made: what it draws does not depend on the tests that ran before it."""
    random.seed(0), np.random.seed(0), torch.manual_seed(0)


@pytest.fixture(scope="session")
def rapidocr_engine():
    return make_engine("rapidocr")


@pytest.fixture(scope="session")
def draw_text():
    """draw_text(text, centre=(x, y), font_size, size) -> (3, size, size) float image, black on white."""

    def draw(text, centre=None, font_size=22, size=64, fill="black", background="white"):
        image = Image.new("RGB", (size, size), background)
        font = ImageFont.load_default(font_size)
        ImageDraw.Draw(image).text(centre or (size / 2, size / 2), text, fill=fill, font=font, anchor="mm")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255  # (3, size, size)

    return draw


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """What the distribution is built from, copied: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "flow_grpo", folder / "flow_grpo", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="session")
def pip_install():
    """pip_install(option, ...): what pip's command of that name does, from folders alone."""

    def install(*options):
        offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
        command = [sys.executable, "-m", "pip", "install", *offline, *options]
        finished = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr

    return install


@pytest.fixture(scope="session")
def plug_in(sources, pip_install, tmp_path_factory):
    """A folder that holds `flow_grpo_maps` as its wheel installs it, and nothing else."""
    site = tmp_path_factory.mktemp("site")
    pip_install("--target", site, sources)
    return site
