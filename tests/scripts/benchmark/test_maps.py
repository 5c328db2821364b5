"""The maps' benchmark: that its rows do the same work, and that its figures are what they are called."""

import argparse
import math

import pytest
import torch

from flow_grpo.clip_gradcam_scorer import ClipGradcamScorer, gradcam
from scripts.benchmark import maps as benchmark_maps
from scripts.benchmark.maps import (
    CONFIGS,
    MAPS,
    PLAIN,
    TORCHCAM,
    WITH_PROMPTS,
    Bench,
    make_model,
    peaks,
    ratio,
    seconds,
)
from scripts.benchmark.maps import benchmark_maps as run_benchmark


def arguments(*words):
    parser = argparse.ArgumentParser()
    benchmark_maps.add_arguments(parser)
    return parser.parse_args(["--model", "tiny", "--batch", "3", "--size", "64", "--threads", "1", *words])


@pytest.fixture(scope="module")
def bench():
    return Bench(arguments())


def test_plain_score_is_clipscore_by_transformers_own_forward(bench):
    ours = bench.row("clipscore")() * 30  # logits
    for name in (PLAIN, WITH_PROMPTS):
        torch.testing.assert_close(bench.row(name)(), ours)


def test_library_row_explains_what_clip_gradcam_explains(bench):
    raw = gradcam(*bench.clip.trace(bench.images, bench.prompts, ClipGradcamScorer(bench.clip).request).features[2])
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    # torchcam adds an epsilon to what it divides by
    torch.testing.assert_close(bench.row(TORCHCAM)(), (raw - low) / (high - low), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in MAPS if name != "clipscore"])
def test_every_row_of_ours_draws_maps_and_leaves_nothing_behind(bench, name):
    maps = bench.row(name)()
    assert maps.shape == (3, 64, 64) and maps.amin() >= 0 and maps.amax() <= 1
    assert all(parameter.grad is None for parameter in bench.model.parameters())


def test_prompts_fill_the_context_and_differ(bench):
    ids = make_model("tiny")[1](bench.prompts)["input_ids"]
    assert {len(each) for each in ids} == {62} and len(set(bench.prompts)) == 3
    assert all(each[0] == 49406 and each[-1] == 49407 for each in ids)


def test_large_model_has_the_size_of_vit_l_14():
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**CONFIGS["vit-l-14"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == 427_616_513
    assert model.config.vision_config.patch_size == 14 and model.vision_model.embeddings.num_patches == 256


def test_every_row_is_timed_once_a_round_and_the_first_round_is_not_counted():
    taken = seconds([PLAIN, "clip_gradcam"], arguments("--repeats", "2"))
    assert list(taken) == [PLAIN, "clip_gradcam"] and {len(each) for each in taken.values()} == {2}
    assert min(taken[PLAIN] + taken["clip_gradcam"]) > 0


def test_ratio_is_the_median_of_each_rounds_own():
    taken = {"map": [2.0, 30.0, 6.0], PLAIN: [1.0, 10.0, 6.0]}
    assert ratio(taken, "map", PLAIN) == 2.0
    assert math.isnan(ratio(taken, "map", TORCHCAM))


def test_memory_is_of_a_process_of_its_own_and_counts_what_the_row_holds():
    held = torch.ones(2**28)  # 1 GiB, as a process may hold that has run many other tests
    found = peaks(["clip_gradient"], arguments("--size", "512", "--batch", "16"))["clip_gradient"]
    # 16 images of 512 px in fp32 are 48 MiB: they, their gradients, a copy at least; the libraries alone are 400
    assert 400 + 3 * 48 < found < held.nbytes / 2**20


def test_the_table_has_every_row_with_its_ratios(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_maps, "peaks", lambda names, args: dict.fromkeys(names, 100.0))  # tested above
    figures = run_benchmark(arguments("--repeats", "1"))
    assert {PLAIN, WITH_PROMPTS, TORCHCAM, *MAPS} <= set(figures)
    assert figures[PLAIN][f"/ {PLAIN}"] == figures[TORCHCAM][f"/ {TORCHCAM}"] == 1
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures)
