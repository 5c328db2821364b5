"""PaddleOCR 2.10 and 3.7 behind one call. The weights come from a folder, the rapidocr wheel, or a download.

The two releases share little besides their name: the arguments, the results and a model's files all differ. `engine` builds
an OcrEngine from this file; this file does not know `TextLine`.
"""

import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

# image (H, W, 3), uint8 BGR -> quad (4, 2), text and confidence of each line
ReadLines = Callable[[np.ndarray], list[tuple[np.ndarray, str, float]]]

PARTS = {"det": "text_detection", "rec": "text_recognition"}
MODELS = {"det": "PP-OCRv6_small_det", "rec": "PP-OCRv6_small_rec"}  # in the wheel; 3.7 is told to download them
MODEL_FILE = {"onnxruntime": "inference.onnx", "paddle": "inference.pdiparams"}
INSTALL = 'pip install "flow-grpo-maps[paddleocr]"'


def load_paddleocr(runtime: str, weights: str | Path | None, detector: dict) -> ReadLines:
    """The installed PaddleOCR, on one CPU thread. It has no orientation classifier and no unwarping, and keeps every line.

    runtime: the library that computes the models, "onnxruntime" or "paddle".
    weights: a folder with the model folders `det` and `rec`, each as PaddleOCR publishes it for the runtime. None takes the
        weights of the rapidocr wheel (only with onnxruntime), or else lets PaddleOCR download its own.
    detector: limit_type, limit_side_len, thresh, box_thresh, unclip_ratio, use_dilation.
    Raises ImportError for a missing package or an unknown release, FileNotFoundError if there are no weights.
    """
    if runtime not in MODEL_FILE:
        raise ValueError(f"runtime must be one of {', '.join(MODEL_FILE)}, got {runtime!r}")
    # onnxruntime writes telemetry files unless this is set before its import
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    load = _loader()
    _require(runtime)
    needed = ["inference.yml", MODEL_FILE[runtime]]
    if runtime == "paddle" and load is _load_2:
        # 2.10 can read inference.json, but downloads a model again if this file is missing
        needed.append("inference.pdmodel")
    with model_folders(runtime, weights, needed, detector) as folders:
        return load(runtime, folders, detector)


def _loader() -> Callable[..., ReadLines]:
    try:
        release = version("paddleocr")
    except PackageNotFoundError as error:
        raise ImportError(f'the "paddleocr" engine needs PaddleOCR: {INSTALL}') from error
    numbers = tuple(int(number) for number in release.split(".")[:2])
    if numbers == (2, 10):
        return _load_2
    if numbers < (3, 7):  # 3.0 to 3.6 do not know PP-OCRv6
        raise ImportError(f'the "paddleocr" engine needs PaddleOCR 2.10 or 3.7, got {release}: {INSTALL}')
    return _load_3


def _require(package: str):
    handlers = logging.root.handlers[:]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        # paddlepaddle 3.3 fails on CPUs, in oneDNN
        install = 'pip install "paddlepaddle==3.2.2"' if package == "paddle" else INSTALL
        raise ImportError(f'the "paddleocr" engine needs {package}: {install}') from error
    finally:
        logging.root.handlers[:] = handlers  # importing Paddle changes the root logger


def _load_3(runtime: str, folders: dict[str, Path], detector: dict) -> ReadLines:
    paddleocr = _require("paddleocr")
    logging.getLogger("paddlex").setLevel(logging.CRITICAL)  # it logs every model; failures are raised anyway
    options = {f"text_det_{name}": value for name, value in detector.items() if name != "use_dilation"}
    for part, task in PARTS.items():
        options[f"{task}_model_name"] = _config(folders[part])["Global"]["model_name"] if folders else MODELS[part]
        options[f"{task}_model_dir"] = str(folders[part]) if folders else None
    one_thread = {
        "onnxruntime": {"intra_op_num_threads": 1, "inter_op_num_threads": 1},
        "paddle": {"paddle_static": {"run_mode": "paddle", "cpu_threads": 1}},
    }
    try:
        ocr = paddleocr.PaddleOCR(
            **options,
            engine=runtime,
            engine_config=one_thread[runtime],
            device="cpu",
            use_doc_orientation_classify=False,
            use_doc_unwarping=False,
            use_textline_orientation=False,
            text_rec_score_thresh=0.0,
        )
    except Exception as error:  # PaddleX raises nothing narrower for a failed download
        if folders:
            raise
        raise _no_weights(runtime) from error

    def read_lines(image: np.ndarray) -> list[tuple[np.ndarray, str, float]]:
        (page,) = ocr.predict(image)
        return list(zip(page["rec_polys"], page["rec_texts"], page["rec_scores"], strict=True))

    return read_lines


def _load_2(runtime: str, folders: dict[str, Path], detector: dict) -> ReadLines:
    _require("paddle")  # 2.10 always imports it, even when onnxruntime computes the models
    paddleocr = _require("paddleocr")
    options = {f"det_{name}": detector[name] for name in ("limit_type", "limit_side_len")}
    options |= {f"det_db_{name}": detector[name] for name in ("thresh", "box_thresh", "unclip_ratio")}
    if runtime == "onnxruntime":
        session = _require("onnxruntime").SessionOptions()
        session.intra_op_num_threads = session.inter_op_num_threads = 1
        options |= {"use_onnx": True, "onnx_sess_options": session}
    for part, folder in folders.items():
        options[f"{part}_model_dir"] = str(folder / "inference.onnx" if runtime == "onnxruntime" else folder)
    if folders:
        options["cls_model_dir"] = options["det_model_dir"]  # never loaded, but 2.10 would download it
    elif runtime == "onnxruntime" or not _can_download_2():
        raise _no_weights(runtime)
    with TemporaryDirectory() as scratch:
        if folders:
            characters = Path(scratch, "characters.txt")
            characters.write_bytes("\n".join(_config(folders["rec"])["PostProcess"]["character_dict"]).encode())
            options["rec_char_dict_path"] = str(characters)
        ocr = paddleocr.PaddleOCR(
            **options,
            lang="en",
            use_gpu=False,
            use_angle_cls=False,
            use_dilation=detector["use_dilation"],
            drop_score=0.0,
            show_log=False,
        )
    logging.getLogger("ppocr").setLevel(logging.ERROR)

    def read_lines(image: np.ndarray) -> list[tuple[np.ndarray, str, float]]:
        (page,) = ocr.ocr(image, cls=False)
        return [(quad, text, confidence) for quad, (text, confidence) in page or []]

    return read_lines


@contextmanager
def model_folders(
    runtime: str, weights: str | Path | None, needed: list[str], detector: dict
) -> Iterator[dict[str, Path]]:
    """The folders of the detector and the recogniser while they are loaded. Empty if PaddleOCR must download them."""
    if weights is not None:
        folders = {part: Path(weights) / part for part in PARTS}
        missing = [
            str(folder / name) for folder in folders.values() for name in needed if not (folder / name).is_file()
        ]
        if missing:
            raise FileNotFoundError(f"weights={str(weights)!r} lacks {', '.join(missing)}")
        yield folders
        return
    wheel = _wheel_weights() if runtime == "onnxruntime" else {}
    if not wheel:
        yield {}
        return
    # Written anew each time (30 MB in 0.1 s): a private folder is never out of date or half written by another process.
    with TemporaryDirectory(prefix="flow-grpo-ocr-") as scratch:
        folders = {part: Path(scratch, part) for part in PARTS}
        for part, folder in folders.items():
            folder.mkdir()
            shutil.copyfile(wheel[part], folder / "inference.onnx")
            # JSON, which is YAML too and is written faster
            config = json.dumps(_wheel_config(part, wheel[part], detector), ensure_ascii=False)
            (folder / "inference.yml").write_text(config, encoding="utf-8")
        yield folders


def _wheel_weights() -> dict[str, Path]:
    spec = importlib.util.find_spec("rapidocr")
    if spec is None:
        return {}
    models = {part: Path(spec.origin).parent / "models" / f"PP-OCRv6_{part}_small.onnx" for part in PARTS}
    return models if all(path.is_file() for path in models.values()) else {}


def _wheel_config(part: str, model: Path, detector: dict) -> dict:
    """The content of PaddleOCR's `inference.yml` for such a model. The recogniser's characters come from its ONNX file."""
    if part == "det":
        transforms = [
            {"DetResizeForTest": {name: detector[name] for name in ("limit_type", "limit_side_len")}},
            {"NormalizeImage": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "order": "hwc"}},
            {"ToCHWImage": None},
        ]
        post = {"name": "DBPostProcess", "use_dilation": detector["use_dilation"]}
    else:
        transforms = [{"RecResizeImg": {"image_shape": [3, 48, 320]}}]
        session = _require("onnxruntime").InferenceSession(model, providers=["CPUExecutionProvider"])
        characters = session.get_modelmeta().custom_metadata_map["character"].split("\n")
        post = {"name": "CTCLabelDecode", "character_dict": characters}
    return {"Global": {"model_name": MODELS[part]}, "PreProcess": {"transform_ops": transforms}, "PostProcess": post}


def _config(folder: Path) -> dict:
    import yaml

    # the pure Python loader takes 0.4 s for the recogniser's characters
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((folder / "inference.yml").read_text(encoding="utf-8"), Loader=loader)


def _can_download_2() -> bool:
    """Whether 2.10 has its weights or can reach their host. Without this check it would wait for the host forever."""
    import requests

    if Path(os.environ.get("PADDLE_OCR_BASE_DIR", "~/.paddleocr"), "whl").expanduser().is_dir():
        return True
    try:
        requests.head("https://paddleocr.bj.bcebos.com", timeout=3)
    except requests.RequestException:
        return False
    return True


def _no_weights(runtime: str) -> FileNotFoundError:
    wheel = " pip install rapidocr (its wheel carries them), or" if runtime == "onnxruntime" else ""
    return FileNotFoundError(
        f"PaddleOCR has no weights for {runtime!r} here and can download none;{wheel} give weights=, a folder with the "
        f"models det and rec that each hold inference.yml and {MODEL_FILE[runtime]}"
    )
