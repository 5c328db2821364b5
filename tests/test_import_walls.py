"""Who may import whom, read from the source: a new file stands behind its wall from its first line."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flow_grpo"
TRAINING = sorted((PACKAGE / "training").rglob("*.py"))
FLOOR = sorted(set(PACKAGE.rglob("*.py")) - set(TRAINING))

TRAINERS_LIBRARIES = {"diffusers", "accelerate", "peft", "wandb", "ml_collections"}
# Needed by one scorer or another, so imported where its model is built.
MODEL_LIBRARIES = {
    *("transformers", "open_clip", "rapidocr", "paddleocr", "paddlex", "paddle", "onnxruntime", "cv2"),
    *("Levenshtein", "scipy", "yaml", "requests"),
}
# A fork has files of these names, and its own ideas of what stands in them.
FORKS_OWN = {"flow_grpo.clip_scorer", "flow_grpo.ocr_scorer", "flow_grpo.rewards"}
IMAGE_LEVEL_SCORERS = {"clip_scorer.py", "ocr_scorer.py", "pick_scorer.py"}
TORCH_ALONE = {"sde.py", "advantages.py", "groups.py", "modes.py", "spread.py", "controls.py", "objective.py"}
RANK_NAMES = {"process_index", "local_process_index", "local_rank", "get_rank"}


def label(path):
    return str(path.relative_to(ROOT))


def imported(path, module_level=False):
    """Dotted names of all modules a file imports, or of those imported as soon as it is."""
    tree = ast.parse(path.read_text())
    package = path.relative_to(ROOT).parent.parts
    lazy = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        for inner in ast.walk(node)
        if module_level and inner is not node
    }
    names = set()
    for node in ast.walk(tree):
        if node in lazy:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def is_type_checking(node):
    return isinstance(node, ast.If) and getattr(node.test, "id", getattr(node.test, "attr", None)) == "TYPE_CHECKING"


def within(names, modules):
    """Those names that are one of the modules or stand under one."""
    return {name for name in names if any(name == module or name.startswith(f"{module}.") for module in modules)}


def third_party(names):
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


def test_there_is_something_to_hold():
    assert {"score.py", "scorers.py", "ocr_map_scorer.py"} <= {path.name for path in FLOOR}


def test_the_package_is_a_namespace():
    assert not (PACKAGE / "__init__.py").exists()


@pytest.mark.parametrize("path", FLOOR, ids=label)
def test_scorers_floor_knows_nothing_of_training(path):
    assert not within(imported(path), {"flow_grpo.training", *TRAINERS_LIBRARIES})


@pytest.mark.parametrize("path", FLOOR, ids=label)
def test_model_libraries_are_imported_where_a_model_is_built(path):
    assert not within(imported(path, module_level=True), MODEL_LIBRARIES)


@pytest.mark.parametrize("path", [path for path in FLOOR if path.name not in IMAGE_LEVEL_SCORERS], ids=label)
def test_map_scorers_import_no_file_that_a_fork_has_itself(path):
    if path.name.endswith("_scorer.py"):
        assert not within(imported(path), FORKS_OWN)


@pytest.mark.parametrize("path", TRAINING, ids=label)
def test_sde_advantages_and_objective_know_torch_alone(path):
    if path.name in TORCH_ALONE:
        assert third_party(imported(path)) <= {"torch", "flow_grpo"}
        ours = within(imported(path), {"flow_grpo"}) - {"flow_grpo.training"}
        assert not ours - within(ours, {f"flow_grpo.training.{Path(name).stem}" for name in TORCH_ALONE})


@pytest.mark.parametrize("path", TRAINING, ids=label)
def test_only_tracking_says_wandb(path):
    if path.name != "tracking.py":
        assert not within(imported(path), {"wandb"})


@pytest.mark.parametrize("path", TRAINING, ids=label)
def test_only_distributed_says_rank(path):
    if path.name != "distributed.py":
        said = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not said & RANK_NAMES
        # DTensor is a tensor's layout; shards.py uses it without knowing which process it is in
        layout = {"torch.distributed.tensor"} if path.name == "shards.py" else set()
        assert not within(imported(path), {"torch.distributed"}) - within(imported(path), layout)


def test_scorers_floor_imports_with_torch_and_numpy_alone():
    # None in sys.modules makes an import of that name fail
    missing = sorted(TRAINERS_LIBRARIES | MODEL_LIBRARIES)
    code = f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
    code += "\n".join(f"import {'.'.join(path.relative_to(ROOT).with_suffix('').parts)}" for path in FLOOR)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_walls_see_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "flow_grpo" / "probe_scorer.py"
    path.parent.mkdir()
    path.write_text(
        "from . import rewards\nfrom .ocr_scorer import OcrScorer\nimport os.path\n"
        "def build():\n    from transformers.models import clip\n    import wandb\n"
    )
    assert within(imported(path), FORKS_OWN) >= {"flow_grpo.rewards", "flow_grpo.ocr_scorer"}
    assert within(imported(path), TRAINERS_LIBRARIES) == {"wandb"}
    assert within(imported(path), MODEL_LIBRARIES) and not within(imported(path, module_level=True), MODEL_LIBRARIES)


# The graph as a whole, through indirect imports; what is imported in a function counts, too

MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (*FLOOR, *TRAINING)}
MATHEMATICS = ("sde", "objective", "advantages", "groups", "credit", "records", "modes", "spread", "controls")


def neighbours(module):
    """The modules of the package that a module imports itself."""
    return {name for name in imported(MODULES[module]) if name in MODULES and name != module}


def reached(module):
    """All that a module imports, directly and through what it imports."""
    found, waiting = set(), [module]
    while waiting:
        for name in neighbours(waiting.pop()) - found:
            found.add(name)
            waiting.append(name)
    return found


def test_no_module_leads_back_to_itself():
    assert [module for module in MODULES if module in reached(module)] == []


def test_the_floor_reaches_nothing_of_training():
    floor = [module for module in MODULES if not module.startswith("flow_grpo.training.")]
    assert [module for module in floor if within(reached(module), {"flow_grpo.training"})] == []


@pytest.mark.parametrize("name", MATHEMATICS)
def test_the_mathematics_reaches_torch_alone(name):
    module = f"flow_grpo.training.{name}"
    brought = set().union(*(third_party(imported(MODULES[each])) for each in {module} | reached(module)))
    assert brought - {"flow_grpo"} <= {"torch"}
    assert within(reached(module), {f"flow_grpo.training.{each}" for each in MATHEMATICS}) == reached(module)


def test_what_says_a_wrong_setting_does_not_wait_for_diffusers():
    """train_sd3.py needs the number of processes to check a configuration; diffusers and peft take most of a start's seconds."""
    module = "flow_grpo.training.distributed"
    brought = set().union(*(third_party(imported(MODULES[each])) for each in {module} | reached(module)))
    assert not brought & {"diffusers", "transformers", "peft"}
