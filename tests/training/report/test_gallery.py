import pytest
from PIL import Image

from flow_grpo.training.report.gallery import read_samples, save_samples
from tests.training.report.fake_run import make_sample


def test_samples_come_back_as_they_were_written(tmp_path):
    samples = [make_sample("a", 3), make_sample("b", 3, valid_map=False)]
    save_samples(tmp_path, "eval/samples", samples, 3)
    (found,) = read_samples(tmp_path)
    assert (found.name, found.epoch) == ("eval/samples", 3)
    assert [s.prompt for s in found.samples] == ["a", "b"]
    assert found.samples[0].reward == pytest.approx(0.3) and found.samples[0].advantage is None
    assert (Image.open(found.samples[0].image).size) == (24, 16)
    assert Image.open(found.samples[0].overlays["ocr_map"]).getpixel((0, 0)) == (135,) * 3
    assert found.samples[1].overlays == {"ocr_map": None}


def test_sets_come_in_the_order_of_their_epochs_and_the_later_line_counts(tmp_path):
    for epoch, prompt in ((4, "old"), (2, "first"), (4, "new")):
        save_samples(tmp_path, "eval/samples", [make_sample(prompt, epoch)], epoch)
    assert [(each.epoch, each.samples[0].prompt) for each in read_samples(tmp_path)] == [(2, "first"), (4, "new")]
