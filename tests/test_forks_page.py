"""docs/forks.md: its change to a fork of Flow-GRPO, applied to an imitation of the fork's shapes and run."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

ROOT = Path(__file__).parents[1]
FORK = ROOT / "tests/fork"
NEW_FILE = "flow_grpo/token_loss.py"
PLACE = r"^( *)# forks\.md: (?!end$)(.+)\n((?:.*\n)*?) *# forks\.md: end\n"


def page_changes():
    """{place: code} of the page's blocks that say in their first line where they belong."""
    blocks = re.findall(
        r"```python\n# (\S+\.py[^\n]*)\n(.*?)```", (ROOT / "docs/forks.md").read_text(), flags=re.DOTALL
    )
    assert len({place for place, _ in blocks}) == len(blocks)
    return dict(blocks)


def apply_page(folder):
    """Make the page's changes in a copy of the imitated fork; returns the places that were changed."""
    changes, changed = page_changes(), []

    def replaced(match):
        changed.append(match[2])
        return textwrap.indent(changes[match[2]], match[1])

    (folder / NEW_FILE).write_text(changes[NEW_FILE])
    for path in folder.rglob("*.py"):
        path.write_text(re.sub(PLACE, replaced, path.read_text(), flags=re.MULTILINE))
    return [NEW_FILE, *changed]


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp("forks") / name for name in ("unchanged", "changed")}
    for folder in folders.values():
        shutil.copytree(FORK, folder)
    assert sorted(apply_page(folders["changed"])) == sorted(page_changes())
    return folders


def module_of(path):
    spec = importlib.util.spec_from_file_location(f"fork_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sde_type", ["sde", "cps"])
@pytest.mark.parametrize("num_timesteps", [1, 3])
def test_pages_log_prob_by_token_averages_to_the_forks_own(forks, plug_in, monkeypatch, sde_type, num_timesteps):
    monkeypatch.syspath_prepend(str(plug_in))
    token_loss = module_of(forks["changed"] / NEW_FILE)
    step = module_of(forks["changed"] / "flow_grpo/diffusers_patch/sd3_sde_with_logprob.py").sde_step_with_logprob
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    velocity, sample = torch.randn(2, 3, 16, 8, 8, generator=generator)
    timestep = scheduler.timesteps[[4]] if num_timesteps == 1 else scheduler.timesteps[[1, 4, 7]]
    following, log_prob, mean, std_dev_t = step(
        scheduler, velocity, timestep, sample, noise_level=0.7, generator=generator, sde_type=sde_type
    )
    by_token = token_loss.token_log_prob(scheduler, timestep, following, mean, std_dev_t, sde_type)
    assert by_token.shape == (3, 16)
    torch.testing.assert_close(by_token.mean(dim=1), log_prob, atol=2e-6, rtol=0)  # fp32 sums in another order


def old_tokenizers(folder):
    """The tiny model with its tokenizers in the files that every transformers since 4 reads."""
    shutil.copytree(ROOT / "models/tiny-sd3", folder)
    for path in folder.glob("tokenizer*/tokenizer.json"):
        written = json.loads(path.read_text())
        if written["model"]["type"] != "BPE":  # the T5's words, a file that all of them read
            continue
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in written["model"]["merges"]]
        (path.parent / "vocab.json").write_text(json.dumps(written["model"]["vocab"]))
        (path.parent / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
        path.unlink()
    for path in (folder / "model_index.json", folder / "tokenizer_3/tokenizer_config.json"):
        path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))  # its name before 5
    return folder


@pytest.fixture(scope="module")
def runs(forks, plug_in, tmp_path_factory):
    """Two epochs of the fork's trainer: as it is, and by the page's change at strengths 0 and 0.5."""
    results = tmp_path_factory.mktemp("runs")
    model = old_tokenizers(results / "model")
    for name, strengths in (("unchanged", []), ("changed", ["0", "0.5"])):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(forks[name]), str(plug_in)]),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, forks[name] / "scripts/train_sd3.py", model, results / f"{name}.pt", *strengths]
        finished = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
    return torch.load(results / "unchanged.pt") | torch.load(results / "changed.pt")


def change(run, other):
    """The largest difference of two runs' weights."""
    return max((run["weights"][name] - other["weights"][name]).abs().max() for name in other["weights"])


def test_at_strength_0_the_pages_trainer_is_the_forks_own(runs):
    own, changed = runs["none"], runs["0"]
    assert own["info"]["num_samples"].min() >= 4, "no advantages would prove nothing"
    losses = (run["info"]["policy_loss"].double() for run in (changed, own))
    torch.testing.assert_close(*losses, atol=1e-7, rtol=0)  # means of advantages near 1 that cancel, in fp32
    moved = max(weight.abs().max() for name, weight in own["weights"].items() if "lora_B" in name)
    assert change(own, changed) < 1e-3 * moved  # the same sums in another order


def test_with_a_map_it_learns_something_else_of_the_same_images(runs):
    even, mapped = runs["0"], runs["0.5"]
    moved = max(weight.abs().max() for name, weight in even["weights"].items() if "lora_B" in name)
    assert torch.equal(even["info"]["num_samples"], mapped["info"]["num_samples"])
    assert change(even, mapped) > 0.05 * moved
    assert mapped["info"]["approx_kl"].isfinite().all() and mapped["info"]["approx_kl"][0] < 1e-10
