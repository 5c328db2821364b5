"""The distribution in a fork of Flow-GRPO: `flow_grpo_maps` is ours in every layout, and the fork's files stay its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from flow_grpo.scorers import make_scorer
from tests.clip_models import make_clip

FORK = Path(__file__).parent / "fork"
# Every name that Flow-GRPO's own package has, beside the rewards.py of our imitation.
FORKS_MODULES = (
    *("aesthetic_scorer", "clip_scorer", "ema", "fsdp_utils", "imagereward_scorer", "ocr", "pickscore_scorer"),
    *("prompts", "qwenvl", "stat_tracking", "diffusers_patch.sd3_sde_with_logprob", "bagel.modeling"),
)
FORKS_NAMES = (*FORKS_MODULES, "rewards", "assets")
OUR_NAMES = ("scorers", "rewards", "clip_scorer", "ocr_map_scorer", "clip.load", "training.advantages", "training.sde")
FORKS_SETUP = (
    "from setuptools import find_packages, setup\nsetup(name='flow-grpo', version='0', packages=find_packages())\n"
)

# Origins of modules, in an environment whose site folders are added as Python adds its own: with their .pth files.
FIND = """
import json, site, sys
from importlib.util import find_spec
sites, names = json.loads(sys.argv[1])
for folder in sites:
    site.addsitedir(folder)
found = {}
for name in names:
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:
        spec = None
    found[name] = spec and (spec.origin or sorted(map(str, spec.submodule_search_locations)))
print(json.dumps(found))
"""


def python(path, *command, **environment):
    """The command's output, in a fresh Python that finds packages in the folders of `path` and in no checkout."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONSAFEPATH": "1"} | environment
    finished = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def make_fork(folder, has_init):
    """An imitation of Flow-GRPO's package: a file of every name that it has."""
    shutil.copytree(FORK, folder)
    package = folder / "flow_grpo"
    for name in FORKS_MODULES:
        path = package / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('raise RuntimeError("a fork\'s own file, which none of ours may import")\n')
    (package / "assets").mkdir()
    (folder / "setup.py").write_text(FORKS_SETUP)
    if has_init:
        for inner in (package, package / "diffusers_patch", package / "bagel"):
            (inner / "__init__.py").touch()
    return folder


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    return make_fork(tmp_path_factory.mktemp("fork") / "checkout", has_init=True)


@pytest.fixture(scope="module")
def our_sites(plug_in, sources, pip_install, tmp_path_factory):
    """Site folders with our distribution, by how it was installed."""
    prefix = tmp_path_factory.mktemp("editable")
    pip_install("--prefix", prefix, "--editable", sources)
    return {"wheel": plug_in, "editable": site_packages(prefix)}


def site_packages(prefix):
    (site,) = prefix.glob("lib/python*/site-packages")
    return site


def install_fork(how, folder, site, pip_install):
    """The fork's site folders, by how it came there."""
    if how in ("pip install .", "pip install -e ."):
        pip_install("--prefix", site, *(["--editable"] if how.endswith("-e .") else []), folder)
        return [site_packages(site)]
    if how == "pip install -e . of an old pip":  # it left the folder's name in a .pth file
        site.mkdir()
        (site / "easy-install.pth").write_text(f"{folder}\n")
        return [site]
    return [folder]  # run in its own folder, never installed


def origins(sites, names):
    return json.loads(python([], "-c", FIND, json.dumps([[str(site) for site in sites], names])))


@pytest.mark.parametrize("has_init", [True, False], ids=["init", "no init"])
@pytest.mark.parametrize(
    "how", ["not installed", "pip install .", "pip install -e .", "pip install -e . of an old pip"]
)
def test_a_fork_finds_its_own_files_and_ours_in_every_layout(how, has_init, our_sites, pip_install, tmp_path):
    folder = make_fork(tmp_path / "fork", has_init)
    theirs = install_fork(how, folder, tmp_path / "site", pip_install)
    forks_names = [f"flow_grpo.{name}" for name in FORKS_NAMES]
    alone = origins(theirs, forks_names)
    if has_init or "." not in how or "old" in how:  # pip itself installs nothing of a package without an __init__.py
        assert all(found and str(tmp_path) in str(found) for name, found in alone.items() if name != "flow_grpo.assets")
    for ours in our_sites.values():
        for sites in ([*theirs, ours], [ours, *theirs]):
            found = origins(sites, forks_names + [f"flow_grpo_maps.{name}" for name in OUR_NAMES])
            assert {name: found[name] for name in forks_names} == alone
            for name in OUR_NAMES:
                assert found[f"flow_grpo_maps.{name}"].endswith(f"/{name.replace('.', '/')}.py")
                assert str(tmp_path) not in found[f"flow_grpo_maps.{name}"]


def test_wheel_holds_no_flow_grpo_and_nothing_of_the_trainer(plug_in):
    assert [path.name for path in plug_in.iterdir() if not path.name.endswith(".dist-info")] == ["flow_grpo_maps"]
    package = plug_in / "flow_grpo_maps"
    installed = {path.stem for path in (package / "training").glob("*.py")}
    assert {"sde", "objective", "advantages", "patches"} <= installed
    assert not installed & {"trainer", "update", "rollout", "distributed", "checkpoint", "policies"}
    assert (package / "py.typed").exists()


def test_wheel_imports_with_torch_numpy_and_pillow_alone(plug_in):
    package = plug_in / "flow_grpo_maps"
    modules = [".".join(path.relative_to(plug_in).with_suffix("").parts) for path in sorted(package.rglob("*.py"))]
    # but for the remote scorer and its server, whose libraries are the extra `remote`
    modules = [name for name in modules if ".remote" not in name]
    assert len(modules) > 30
    code = (
        "import sys, importlib, numpy, torch, PIL.ImageDraw, PIL.ImageFont\n"
        "top = lambda: {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names\n"
        "floor = top()\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "import flow_grpo_maps\n"
        "print(sorted(top() - floor), flow_grpo_maps.__version__)"
    )
    imported, version = python([plug_in], "-c", code).rsplit(maxsplit=1)
    assert imported == "['flow_grpo_maps']"
    assert version.count(".") == 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    for part in make_clip(image_size=64):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def batch(draw_text):
    words = ("HUT", "SOB", "TAN")
    return {
        "weights": {"clip_gradcam": 0.5, "ocr_map": 2.0, "brightness": 0.1},
        "images": torch.stack([draw_text(word) for word in words]),
        "prompts": [f'a sign that says "{word}"' for word in ("HUT", "SOB", "HEN")],
        "metadata": [{}] * len(words),
    }


@pytest.fixture(scope="module")
def scored(fork, model, batch, plug_in, tmp_path_factory):
    """What the fork's trainer got, run in its folder beside our wheel."""
    folder = tmp_path_factory.mktemp("scored")
    torch.save(batch, folder / "batch.pt")
    python([fork, plug_in], fork / "train.py", folder / "batch.pt", folder / "scored.pt", CLIP_MODEL=model)
    return torch.load(folder / "scored.pt")


def test_fork_runs_its_own_rewards_and_our_scorers_from_the_wheel(scored, fork, plug_in):
    loaded = scored["loaded"]
    assert Path(loaded["flow_grpo.rewards"]) == fork / "flow_grpo" / "rewards.py"
    assert Path(loaded["flow_grpo_maps.ocr_map_scorer"]) == plug_in / "flow_grpo_maps" / "ocr_map_scorer.py"
    assert [name for name in loaded if name.startswith("flow_grpo.")] == ["flow_grpo.rewards"]


def test_forks_rewards_are_our_scores_in_its_weighted_sum(scored, batch, model):
    details = scored["details"]
    expected = {
        "clip_gradcam": make_scorer("clip_gradcam", model=model)(batch["images"], batch["prompts"]).reward,
        "ocr_map": make_scorer("ocr_map")(batch["images"], batch["prompts"]).reward,
        "brightness": batch["images"].mean(dim=(1, 2, 3)),
    }
    for name, rewards in expected.items():
        torch.testing.assert_close(details[name], rewards)
    total = sum(weight * expected[name] for name, weight in batch["weights"].items())
    torch.testing.assert_close(torch.stack(list(details["avg"])), total)
    assert details["ocr_map"][0] > 0.9 > details["ocr_map"][2]  # the third sign says something else


def test_rewards_reach_the_fork_whose_multi_score_drops_the_maps(scored, batch, model):
    """What docs/forks.md changes so that it keeps them is applied and run in test_forks_page.py."""
    for name, options in (("clip_gradcam", {"model": model}), ("ocr_map", {})):
        expected = make_scorer(name, **options)(batch["images"], batch["prompts"])
        torch.testing.assert_close(torch.as_tensor(scored["details"][name]), expected.reward)
    assert scored["extras"] == {}


def test_requirements_admit_what_flow_grpo_pins(plug_in):
    """As pip reads them; `make test-fork` installs both."""
    pins = dict(line.split("==") for line in (FORK / "pins.txt").read_text().split() if "==" in line)
    pins["opencv-python-headless"] = pins["opencv-python"]  # both bring the one cv2
    (metadata,) = plug_in.glob("*.dist-info/METADATA")
    lines = [
        line.removeprefix("Requires-Dist: ") for line in metadata.read_text().splitlines() if "Requires-Dist" in line
    ]
    met = set()
    for requirement in map(Requirement, lines):
        wanted = any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in ("ocr", "clip")
        )
        if wanted and requirement.name in pins:
            assert requirement.specifier.contains(pins[requirement.name]), (
                f"{requirement} against {pins[requirement.name]}"
            )
            met.add(requirement.name)
    assert met == {"torch", "numpy", "pillow", "transformers", "scipy", "opencv-python-headless"}
