"""A run's folder made by hand: metrics of a few epochs, samples drawn in plain colours, a configuration."""

import json

import numpy as np

from flow_grpo.training.report.gallery import save_samples
from flow_grpo.training.samples import Sample

HOSTILE = '"><img src=x onerror=alert(1)></script><script>document.title="hacked"</script> a sign that says "HUT"'


def make_run(folder, num_epochs=4, seed=1, prompts=(HOSTILE, 'a "SECOND" prompt'), changes=None):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for epoch in range(num_epochs + 1):
            if epoch % 2 == 0:
                row = {"eval/reward": 0.5 + 0.1 * epoch, "eval/ocr_map/exact": 0.2 + 0.1 * epoch, "eval/gold/ocr2": 0.4}
                file.write(json.dumps({"epoch": epoch, **row}) + "\n")
            if epoch < num_epochs:
                row = {"rollout/reward_mean": 0.4 + 0.1 * epoch + 0.01 * seed, "rollout/reward_std": 0.2}
                row |= {"time/update_seconds": rng.random(), "rollout/signal/edge_density": 0.3 + 1e-5 * epoch}
                row |= {"alarm/edge_density": float(epoch >= 2)}
                file.write(json.dumps({"epoch": epoch, **row}) + "\n")
    for epoch in range(0, num_epochs + 1, 2):
        save_samples(folder, "eval/samples", [make_sample(prompt, epoch) for prompt in prompts], epoch)
    config = {"name": "fake", "seed": seed, "train": {"beta": 0.0, "learning_rate": 3e-4}, **(changes or {})}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def make_sample(prompt, epoch, valid_map=True):
    image = np.full((16, 24, 3), 40 * epoch % 255, dtype=np.uint8)
    overlay = np.full((16, 24, 3), 255 - 40 * epoch % 255, dtype=np.uint8) if valid_map else None
    return Sample(prompt, image, 0.1 * epoch, {"ocr_map": 0.1 * epoch}, {"ocr_map": overlay})
