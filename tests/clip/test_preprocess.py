import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from flow_grpo.clip.preprocess import ClipPreprocess
from flow_grpo.score import to_uint8

STD = torch.tensor(ClipPreprocess((1, 1), 1).std).view(3, 1, 1)
SIZES = [(1, 1), (2, 3), (64, 64), (96, 96), (95, 64), (70, 301), (301, 200), (500, 110), (1024, 768), (8, 500)]


def reference(images, size=32, **settings):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **settings
    )
    return processor([Image.fromarray(image) for image in to_uint8(images)], return_tensors="pt").pixel_values


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("binary", [False, True], ids=["noise", "black and white"])
def test_every_pixel_is_within_one_level_of_the_processor(size, binary):
    torch.manual_seed(0)
    images = torch.rand(2, 3, *size)
    # black and white overshoots at every edge: an order of passes, or a clamp, other than Pillow's costs 20 levels
    images = images.round() if binary else images
    levels = (ClipPreprocess((32, 32), 32)(images) - reference(images)).abs() * STD * 255
    assert levels.max() < 1.001  # fp32 of the normalised values
    assert (levels > 0.5).float().mean() < 1e-3  # a level apart where a sum lies on the edge between two, else equal


def test_other_means_and_sizes_are_the_processors():
    images = torch.rand(2, 3, 50, 40)
    ours = ClipPreprocess((48, 48), 48, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))(images)
    theirs = reference(images, 48, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    assert (ours - theirs).abs().max() < 1.001 / 255 / 0.2


def test_image_of_the_right_size_is_only_normalised():
    images = torch.rand(1, 3, 32, 32)
    preprocess = ClipPreprocess((32, 32), 32)
    expected = ((images * 255).round() / 255 - torch.tensor(preprocess.mean).view(3, 1, 1)) / STD
    torch.testing.assert_close(preprocess(images), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_any_float_is_read_and_fp32_given(dtype):
    images = torch.rand(1, 3, 40, 40).mul(255).round().div(255)
    assert ClipPreprocess((32, 32), 32)(images.to(dtype)).dtype == torch.float32
    if dtype == torch.float64:
        torch.testing.assert_close(ClipPreprocess((32, 32), 32)(images.to(dtype)), ClipPreprocess((32, 32), 32)(images))


def test_gradient_is_that_of_the_resize_without_its_rounding():
    torch.manual_seed(0)
    images = (0.3 + 0.4 * torch.rand(1, 3, 48, 64)).requires_grad_()  # far from the clamp
    direction = torch.randn(1, 3, 32, 32)
    preprocess = ClipPreprocess((32, 32), 32)
    (gradient,) = torch.autograd.grad((preprocess(images) * direction).sum(), images)
    step = 0.1 * torch.randn_like(images).clamp(-1, 1)
    moved = ((preprocess(images + step) - preprocess(images)) * direction).sum()
    # each of 3072 rounded values may be off by half a level either way: a sum of as many independent errors
    assert abs(moved - (gradient * step).sum()) < 6 * 3072**0.5 / 255 / STD.min()


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (301, 100), (1, 1), (1, 9), (3000, 20)], ids=str)
def test_pixels_outside_the_window_do_not_matter_to_the_middle(size):
    rows, cols = ClipPreprocess((32, 32), 32).window(size)
    assert rows.stop - rows.start == pytest.approx(min(size), abs=1)
    assert cols.stop - cols.start == pytest.approx(min(size), abs=1)
    assert rows.start == pytest.approx((size[0] - min(size)) / 2, abs=1)
    assert cols.start == pytest.approx((size[1] - min(size)) / 2, abs=1)


@pytest.mark.parametrize(("size", "spot"), [((64, 64), (8, 40)), ((40, 100), (30, 55)), ((120, 60), (40, 50))], ids=str)
def test_map_goes_back_to_the_pixels_it_came_from(size, spot):
    preprocess = ClipPreprocess((32, 32), 32, mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.zeros(1, 3, *size)
    images[:, :, spot[0] : spot[0] + 3, spot[1] : spot[1] + 3] = 1
    cells = preprocess(images)[:, 0]  # (1, 32, 32), each pixel that the tower reads as a cell
    rows, cols = preprocess.window(size)
    window = preprocess.to_window(cells, size)[0]
    assert window.shape == (rows.stop - rows.start, cols.stop - cols.start)
    row, col = divmod(window.argmax().item(), window.shape[1])
    assert abs(row + rows.start - (spot[0] + 1)) <= 2 and abs(col + cols.start - (spot[1] + 1)) <= 2


def test_spreading_is_bilinear_interpolation():
    cells = torch.rand(2, 4, 4)
    spread = ClipPreprocess((32, 32), 32).to_window(cells, (64, 64))
    torch.testing.assert_close(spread, torch.nn.functional.interpolate(cells[:, None], (64, 64), mode="bilinear")[:, 0])


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 90), (500, 30)], ids=str)
def test_spreading_keeps_range_and_constants(size):
    preprocess = ClipPreprocess((32, 32), 32)
    spread = preprocess.to_window(torch.rand(4, 8, 8), size)
    assert spread.min() >= 0 and spread.max() <= 1 + 1e-6
    torch.testing.assert_close(
        preprocess.to_window(torch.full((1, 8, 8), 0.3), size).unique().mean(), torch.tensor(0.3)
    )


def test_squashed_image_loses_nothing():
    preprocess = ClipPreprocess((32, 32), None)
    assert preprocess(torch.rand(1, 3, 20, 90)).shape == (1, 3, 32, 32)
    assert preprocess.window((20, 90)) == (slice(0, 20), slice(0, 90))


def test_odd_remainder_is_cut_as_each_library_cuts_it():
    size = (32, 35)  # 3 columns too many: transformers begins at 1, torchvision at round(1.5) = 2
    assert ClipPreprocess((32, 32), 32).window(size)[1] == slice(1, 33)
    assert ClipPreprocess((32, 32), 32, rounded_offset=True).window(size)[1] == slice(2, 34)


def test_crop_larger_than_the_resized_image_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        ClipPreprocess((64, 64), 32)
