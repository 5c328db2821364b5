"""Under PaddleOCR 3.7 as it is installed here, and under 2.10: make test-paddleocr2."""

import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

from flow_grpo.score import to_uint8
from flow_grpo.text_maps import engine as ocr_engine
from flow_grpo.text_maps import paddle as paddle_ocr
from flow_grpo.text_maps.engine import make_engine

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def paddle_engine():
    return make_engine("paddleocr")


@pytest.fixture
def image_of(draw_text):
    """image_of(text, size) -> (size, size, 3) uint8 RGB, black on white."""
    return lambda text, size=192, **colours: to_uint8(draw_text(text, size=size, **colours)[None])[0]


def content(lines):
    return [(line.text, line.confidence, line.quad.tolist()) for line in lines]


def test_paddleocr_reads_what_rapidocr_reads(rapidocr_engine, paddle_engine, image_of):
    for text, size in (("HUT", 64), ("BOX", 96)):
        image = image_of(text, size)
        (rapid,), (paddle,) = rapidocr_engine(image), paddle_engine(image)
        assert rapid.text == paddle.text == text
        assert paddle.confidence == pytest.approx(rapid.confidence, abs=0.02)  # crops are cut by another interpolation
        assert np.array_equal(rapid.quad, paddle.quad)


def test_paddleocr_is_given_bgr(paddle_engine, image_of, monkeypatch):
    image = image_of("HUT", 64, fill=(0, 0, 255), background=(90, 60, 30))
    seen, read = [], paddle_engine._read_lines
    monkeypatch.setattr(paddle_engine, "_read_lines", lambda bgr: seen.append(bgr) or read(bgr))
    assert [line.text for line in paddle_engine(image)] == ["HUT"]
    assert np.array_equal(seen[0], image[..., ::-1])


def test_box_in_which_nothing_was_read_is_no_line(paddle_engine, monkeypatch):
    quad = np.array([[0, 0], [10, 0], [10, 5], [0, 5]])
    found = [(quad, "", 0.0), (quad, " ", 0.3), (quad, "a", 1.0000001)]
    monkeypatch.setattr(paddle_engine, "_read_lines", lambda image: found)
    (line,) = paddle_engine(np.zeros((8, 16, 3), dtype=np.uint8))
    assert (line.text, line.confidence) == ("a", 1.0)


def test_threads_may_share_paddleocr(paddle_engine, image_of):
    images = [image_of(text) for text in ("HUT", "Open Late", "MARKET", "Library")]
    alone = [content(paddle_engine(image)) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert [content(lines) for lines in pool.map(paddle_engine, images * 2)] == alone * 2


def test_paddleocr_logs_nothing(paddle_engine, image_of, capfd):
    root = (logging.root.level, logging.root.handlers[:])
    make_engine("paddleocr")(image_of("HUT"))
    assert capfd.readouterr() == ("", "")
    assert (logging.root.level, logging.root.handlers) == root


def test_weights_may_be_given_as_a_folder(paddle_engine, image_of, tmp_path, monkeypatch):
    with paddle_ocr.model_folders("onnxruntime", None, [], ocr_engine._detector(960)) as folders:
        for part, folder in folders.items():
            shutil.copytree(folder, tmp_path / part)
    monkeypatch.setattr(paddle_ocr, "_wheel_weights", dict)  # which would serve as well
    image = image_of("Open Late")
    assert content(make_engine("paddleocr", weights=tmp_path)(image)) == content(paddle_engine(image)) != []


def test_folder_without_weights_is_named(tmp_path):
    (tmp_path / "det").mkdir()
    (tmp_path / "det" / "inference.yml").touch()
    with pytest.raises(FileNotFoundError, match="lacks .*inference.onnx") as error:
        make_engine("paddleocr", weights=tmp_path)
    assert str(tmp_path / "rec" / "inference.yml") in str(error.value)
    assert str(tmp_path / "det" / "inference.yml") not in str(error.value)


def test_without_weights_or_network_paddleocr_says_so_at_once(tmp_path):
    """It asks for no host while the wheel has weights; without them, for each host once at most."""
    code = """
import socket
asked = []
def no_network(host, *rest, **options):
    asked.append(host)
    raise socket.gaierror(socket.EAI_NONAME, "no network in this test")
socket.getaddrinfo = no_network
from flow_grpo.text_maps import engine as ocr_engine
from flow_grpo.text_maps import paddle as paddle_ocr
from flow_grpo.text_maps.engine import make_engine
make_engine("paddleocr")
assert not asked, asked
paddle_ocr._wheel_weights = dict
try:
    make_engine("paddleocr")
except FileNotFoundError as error:
    assert "pip install rapidocr" in str(error) and "weights=" in str(error), error
else:
    raise AssertionError("found weights")
assert len(asked) == len(set(asked)) <= 4, asked
"""
    # no weights from another day either
    homes = {"HOME": str(tmp_path), "PADDLE_PDX_CACHE_HOME": str(tmp_path), "PADDLE_OCR_BASE_DIR": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name != "PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment | homes)


def test_untried_release_of_paddleocr_is_refused(monkeypatch):
    for release in ("2.9.1", "3.6.0"):
        monkeypatch.setattr(paddle_ocr, "version", lambda package, release=release: release)
        with pytest.raises(ImportError, match=rf"needs PaddleOCR 2.10 or 3.7, got {release}: pip install"):
            make_engine("paddleocr")


def test_missing_package_names_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'needs onnxruntime: pip install "flow-grpo-maps\[paddleocr\]"'):
        make_engine("paddleocr")
    monkeypatch.setitem(sys.modules, "paddle", None)
    with pytest.raises(ImportError, match='needs paddle: pip install "paddlepaddle'):
        make_engine("paddleocr", runtime="paddle")

    def no_package(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(paddle_ocr, "version", no_package)
    with pytest.raises(ImportError, match=r'needs PaddleOCR: pip install "flow-grpo-maps\[paddleocr\]"'):
        make_engine("paddleocr")


def test_options_of_paddleocr_are_checked():
    with pytest.raises(ValueError, match="runtime must be one of onnxruntime, paddle, got 'tensorrt'"):
        make_engine("paddleocr", runtime="tensorrt")
    with pytest.raises(ValueError, match='no confidence of a character; the engine "rapidocr" does'):
        make_engine("paddleocr", characters=True)
