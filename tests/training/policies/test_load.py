"""What is refused before a model is loaded, and what is said of one that cannot be had."""

import pytest

from flow_grpo.training.policies.families import FAMILIES
from flow_grpo.training.policies.load import load_policy


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown policy 'sdxl'; known: sd3, flux"):
        load_policy("sdxl", "models/tiny-sd3", "no")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "sd3"])
def test_a_model_of_another_family_is_refused_before_its_weights_are_loaded(family):
    with pytest.raises(ValueError, match=f"model=models/tiny-sd3 has a SD3Transformer2DModel, and policy={family} "):
        load_policy(family, "models/tiny-sd3", "no")


def test_a_lora_that_is_no_folder_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="lora=.*nowhere is no folder; give a checkpoint's lora or lora_ema"):
        load_policy("sd3", str(tmp_path / "no model either"), "no", lora=str(tmp_path / "nowhere"))


def test_a_model_that_cannot_be_had_is_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="model=models/tiny/sd3 is neither a folder here nor a hub id"):
        load_policy("sd3", "models/tiny/sd3", "no")
    (tmp_path / "half").mkdir()
    with pytest.raises(ValueError, match="model=.*half holds no whole pipeline: "):
        load_policy("sd3", str(tmp_path / "half"), "no")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="model=models/tinysd3 is no folder here, and the hub did not give it .HF_HUB_OFFLINE is set"
    ):
        load_policy("sd3", "models/tinysd3", "no")
