"""How an epoch is dealt: the same samples from any number of processes, every prompt equally often."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo.rewards import make_scorers
from flow_grpo.training.data import GroupSampler, check_data, check_sizes, load_metadata, load_prompts, load_sizes


def sampler(**changes):
    prompts = [f"prompt {i}" for i in range(5)]
    return GroupSampler(**(dict(prompts=prompts, num_groups=4, group_size=6, batch_size=3, seed=7) | changes))


def rows(batches):
    """(prompt, group, seed) of every sample, in order."""
    return [row for b in batches for row in zip(b.prompts, b.group_ids.tolist(), b.seeds, strict=True)]


@given(num_processes=st.sampled_from([1, 2, 3, 4]), epoch=st.integers(0, 20), batch_size=st.sampled_from([1, 2]))
@settings(max_examples=40, deadline=None)
def test_processes_deal_the_global_batches_of_one_process_with_a_larger_batch(num_processes, epoch, batch_size):
    one = sampler(batch_size=batch_size * num_processes).epoch(epoch)
    many = [
        sampler(batch_size=batch_size, rank=rank, num_processes=num_processes).epoch(epoch)
        for rank in range(num_processes)
    ]
    for index, batch in enumerate(one):
        assert rows([batch]) == rows([batches[index] for batches in many])


@given(num_processes=st.sampled_from([1, 2, 4]), epoch=st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_siblings_start_from_one_latent_where_asked_and_each_from_its_own_where_not(num_processes, epoch):
    for rank in range(num_processes):
        dealt = sampler(rank=rank, num_processes=num_processes, same_start=True).epoch(epoch)
        starts = {(group, seed) for b in dealt for group, seed in zip(b.group_ids.tolist(), b.start_seeds, strict=True)}
        assert len(starts) == len({group for group, _ in starts}) == len({seed for _, seed in starts})
        assert all(b.start_seeds == b.seeds for b in sampler(rank=rank, num_processes=num_processes).epoch(epoch))


def test_an_epoch_holds_every_group_whole_and_siblings_share_prompt_and_id():
    dealt = rows(sampler().epoch(3))
    assert Counter(group for _, group, _ in dealt) == {group: 6 for group in range(4)}
    assert len({(prompt, group) for prompt, group, _ in dealt}) == 4


def test_group_ids_are_integers_that_the_advantages_take():
    assert sampler().epoch(0)[0].group_ids.dtype == torch.int64


def test_two_groups_of_one_prompt_are_told_apart():
    dealt = rows(sampler(prompts=["the only one"]).epoch(0))
    assert {group for _, group, _ in dealt} == {0, 1, 2, 3}


def test_metadata_stays_beside_its_prompt_whoever_draws_it():
    metadata = [{"number": i} for i in range(5)]
    for rank in range(2):
        for batch in sampler(metadata=metadata, rank=rank, num_processes=2).epoch(1):
            assert batch.prompts == [f"prompt {entry['number']}" for entry in batch.metadata]
    assert all(batch.metadata == [{}] * 3 for batch in sampler().epoch(1))
    with pytest.raises(ValueError, match="4 metadata for 5 prompts"):
        sampler(metadata=metadata[:4])


def test_every_sample_of_a_run_has_its_own_seed():
    seeds = [seed for epoch in range(30) for _, _, seed in rows(sampler().epoch(epoch))]
    assert len(set(seeds)) == len(seeds) == 30 * 24


def test_every_prompt_is_drawn_equally_often():
    drawn = Counter(prompt for epoch in range(5) for prompt, _, _ in rows(sampler().epoch(epoch)))
    assert set(drawn.values()) == {5 * 24 // 5}


def test_an_epoch_is_a_function_of_seed_and_number():
    assert rows(sampler().epoch(2)) == rows(sampler().epoch(2))
    assert rows(sampler().epoch(2)) != rows(sampler().epoch(3))
    assert rows(sampler(seed=8).epoch(2)) != rows(sampler().epoch(2))


SQUARE, WIDE = (64, 64), (64, 96)
SIZES = [SQUARE, WIDE, SQUARE, SQUARE, WIDE, SQUARE, SQUARE, WIDE, SQUARE, SQUARE]  # 7 and 3


def sized(**changes):
    prompts = [f"prompt {i}" for i in range(len(SIZES))]
    return sampler(**(dict(prompts=prompts, sizes=SIZES, num_groups=2) | changes))


def test_an_epoch_has_one_size_and_each_size_its_share_of_the_epochs():
    epochs = range(200)
    for epoch in epochs:
        drawn = {SIZES[int(prompt.split()[1])] for prompt, _, _ in rows(sized().epoch(epoch))}
        assert drawn == {sized().size(epoch)}
    share = sum(sized().size(epoch) == WIDE for epoch in epochs) / len(epochs)
    assert share == pytest.approx(0.3, abs=0.07)  # two standard deviations of 200 draws
    assert [sized(seed=8).size(epoch) for epoch in epochs] != [sized().size(epoch) for epoch in epochs]


def test_prompts_of_a_size_are_drawn_equally_often_whatever_the_epochs_between():
    wide = [epoch for epoch in range(60) if sized().size(epoch) == WIDE][:6]  # 12 groups of 3 prompts
    assert any(later - epoch > 1 for epoch, later in zip(wide, wide[1:]))
    drawn = Counter(prompt for epoch in wide for prompt, _, _ in rows(sized().epoch(epoch)))
    assert drawn == {f"prompt {i}": 12 * 6 // 3 for i, size in enumerate(SIZES) if size == WIDE}


def test_processes_agree_on_the_size_of_an_epoch():
    one = sized(batch_size=6).epoch(5)
    many = [sized(batch_size=3, rank=rank, num_processes=2).epoch(5) for rank in range(2)]
    assert [rows([batch]) for batch in one] == [rows(pair) for pair in zip(*many, strict=True)]


def test_prompts_of_one_size_are_dealt_as_prompts_without():
    for epoch in range(4):
        assert rows(sampler(sizes=[WIDE] * 5).epoch(epoch)) == rows(sampler().epoch(epoch))
        assert sampler(sizes=[WIDE] * 5).size(epoch) == WIDE


def test_a_size_of_fewer_prompts_than_an_epoch_has_groups_is_refused():
    with pytest.raises(
        ValueError, match=r"3 of the prompts have the resolution \(64, 96\), fewer than the num_groups=4"
    ):
        sized(num_groups=4)
    sampler(sizes=[WIDE] * 5, num_groups=6)  # the only size: its prompts come twice, as without sizes


def test_a_prompt_may_bring_its_size(tmp_path):
    told = [{"resolution": [64, 96]}, {"resolution": 32}, {"targets": ["A"]}]
    write_lines(tmp_path / "train.jsonl", *({"prompt": "a", "metadata": each} for each in told))
    assert load_sizes(tmp_path, "train", 48) == [(64, 96), (32, 32), (48, 48)]
    assert load_sizes(tmp_path, "train", (16, 24))[2] == (16, 24)
    assert load_metadata(tmp_path, "train") == told


@pytest.mark.parametrize("resolution", ["64x96", [64], [64, 96, 3], 0, None])
def test_what_is_no_size_is_refused_by_file_and_line(tmp_path, resolution):
    write_lines(tmp_path / "train.jsonl", {"prompt": "a"}, {"prompt": "a", "metadata": {"resolution": resolution}})
    with pytest.raises(ValueError, match="train.jsonl:2: resolution=.* must be a side in pixels, or .height, width."):
        load_sizes(tmp_path, "train", 64)


def test_a_size_that_a_policy_cannot_draw_is_refused_by_file_and_line(tmp_path, make_policy):
    write_lines(tmp_path / "train.jsonl", {"prompt": "a"}, {"prompt": "a", "metadata": {"resolution": [64, 48]}})
    write_lines(tmp_path / "test.jsonl", *[{"prompt": "a", "metadata": {"resolution": [64, 44]}}] * 2)
    with pytest.raises(ValueError, match=r"test.jsonl:1: resolution=\(64, 44\) must be a multiple of 8"):
        check_sizes(make_policy().set_resolution, tmp_path)


def test_prompts_are_the_files_lines_without_blank_ones(tmp_path):
    (tmp_path / "train.txt").write_text('a sign that says "É"\n\n  second \n', encoding="utf-8")
    assert load_prompts(tmp_path, "train") == ['a sign that says "É"', "second"]
    assert load_metadata(tmp_path, "train") == [{}, {}]


def write_lines(path, *entries):
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries), encoding="utf-8")


def test_a_line_of_json_gives_the_prompt_and_its_metadata(tmp_path):
    told = {"targets": ["CAFÉ", "open"]}
    other = '{"prompt": "two\u2028lines", "metadata": {}}'  # U+2028 may stand in JSON as it is
    write_lines(tmp_path / "test.jsonl", {"prompt": " a café ", "metadata": told}, "", other)
    assert load_prompts(tmp_path, "test") == ["a café", "two\u2028lines"]
    assert load_metadata(tmp_path, "test") == [told, {}]


@pytest.mark.parametrize("name", ["train.jsonl", "train_metadata.jsonl"])
def test_a_line_without_metadata_is_its_own_as_in_flow_grpos_geneval_prompts(tmp_path, name):
    line = {"tag": "counting", "include": [{"class": "bear", "count": 2}], "prompt": "a photo of two bears"}
    write_lines(tmp_path / name, line)
    assert load_prompts(tmp_path, "train") == ["a photo of two bears"]
    assert load_metadata(tmp_path, "train") == [line]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a sign", "not JSON"),
        (["a sign"], "expected a mapping"),
        ({"text": "a sign"}, 'a text under "prompt"'),
        ({"prompt": "  "}, 'a text under "prompt"'),
        ({"prompt": 3}, 'a text under "prompt"'),
        ({"prompt": "a", "metadata": ["b"]}, r"must be a mapping.*got \['b'\]"),
        ({"prompt": "a", "metadata": {}, "tag": "b", "id": 1}, "move id, tag into it"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_by_file_and_line(tmp_path, line, reason):
    write_lines(tmp_path / "train.jsonl", {"prompt": "fine"}, "", line)
    for load in (load_prompts, load_metadata):
        with pytest.raises(ValueError, match=f"train.jsonl:3: .*{reason}"):
            load(tmp_path, "train")


def test_two_files_for_one_split_are_refused(tmp_path):
    (tmp_path / "train.txt").write_text("a")
    write_lines(tmp_path / "test.jsonl", {"prompt": "b"})
    assert load_prompts(tmp_path, "train") == ["a"] and load_prompts(tmp_path, "test") == ["b"]
    write_lines(tmp_path / "train.jsonl", {"prompt": "b"})
    with pytest.raises(ValueError, match="both train.txt and train.jsonl; keep the one"):
        load_prompts(tmp_path, "train")


@pytest.mark.parametrize("name", ["test.txt", "test.jsonl"])
def test_a_missing_or_empty_file_is_refused_by_its_path(tmp_path, name):
    with pytest.raises(ValueError, match="no prompts at .*test.txt.*train.txt and test.txt"):
        load_prompts(tmp_path, "test")
    (tmp_path / name).write_text("\n  \n")
    with pytest.raises(ValueError, match=f"{name} holds no prompts"):
        load_prompts(tmp_path, "test")


PROMPT = 'a sign that says "ONE"'


@pytest.mark.parametrize(
    ("name", "data", "prompts"),
    [
        ("train.txt", f"{PROMPT}\n".encode("utf-8-sig"), [PROMPT]),
        ("train.jsonl", json.dumps({"prompt": PROMPT}).encode("utf-8-sig"), [PROMPT]),
        ("train.txt", f"\r\n{PROMPT}\r\n\r\n".encode(), [PROMPT]),
        ("train.txt", f"{PROMPT}\rtwo\r".encode(), [PROMPT, "two"]),
        ("train.txt", "a\u0085 b\u2028c\u2029d\x0be\x0cf\x1cg\n".encode(), ["a\u0085 b\u2028c\u2029d\x0be\x0cf\x1cg"]),
    ],
    ids=["mark", "mark before JSON", "CRLF", "CR", "line ends of others"],
)
def test_prompts_are_read_as_editors_write_them(name, data, prompts, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert load_prompts(tmp_path, "train") == prompts


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ("a sign\na CAF\xc9\n".encode("latin-1"), "train.txt:2: not UTF-8"),
        ("a sign".encode("utf-16"), "train.txt:1: UTF-16"),
    ],
    ids=["Latin-1", "UTF-16"],
)
def test_other_encodings_are_refused_with_file_and_line(data, where, tmp_path):
    (tmp_path / "train.txt").write_bytes(data)
    with pytest.raises(ValueError, match=f"{where}.*; save the file in UTF-8"):
        load_prompts(tmp_path, "train")


def test_prompts_that_cannot_be_scored_are_refused_with_file_and_line(tmp_path):
    (tmp_path / "train.txt").write_text(f"{PROMPT}\n\na red circle\n{PROMPT}\n" + "no text\n" * 5)
    (tmp_path / "test.txt").write_text(f"{PROMPT}\nno text\n")
    scorers = make_scorers("cpu", {"ocr": 1.0}, {"ocr": {"engine": lambda image: []}})
    with pytest.raises(ValueError, match=r"6 of 8 prompts .*train.txt:3: ocr: .*train.txt:5: .*; and 1 more"):
        check_data(scorers, tmp_path, num_eval_prompts=1)
    (tmp_path / "train.txt").write_text(f"{PROMPT}\n")
    check_data(scorers, tmp_path, num_eval_prompts=1)
    with pytest.raises(ValueError, match=r"test.txt:2"):
        check_data(scorers, tmp_path, num_eval_prompts=0)
    (tmp_path / "train.txt").write_text(
        "no text\n"
    )  # of scorers that only evaluations run, the training prompts are not asked
    check_data(scorers, tmp_path, num_eval_prompts=1, splits=("test",))
