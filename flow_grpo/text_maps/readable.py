"""Which characters an OCR engine knows, and what happens to a target with others: no image of it can be read."""

import importlib.util
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..score import PromptErrors
from .engine import OcrEngine
from .targets import Normalisation, batch_targets, normalise, prompt_targets, shortened

logger = logging.getLogger(__name__)


def known_characters(engine: str | OcrEngine, options: Mapping[str, Any]) -> frozenset[str] | None:
    """The characters that an engine can read, or None if the engine does not tell.

    engine, options: as `make_engine` takes them. An OcrEngine tells them in an attribute `known_characters`.
    """
    if not isinstance(engine, str):
        return getattr(engine, "known_characters", None)
    if engine not in ("rapidocr", "paddleocr"):
        return None
    if options.get("weights") is not None:
        return _of_folder(Path(options["weights"]) / "rec")
    return _of_wheel() if options.get("runtime", "onnxruntime") == "onnxruntime" else None


class PromptReader:
    """Finds the targets of prompts. Refuses a target, or warns about it, if the engine lacks its characters.

    engine, options: as `make_engine` takes them.
    """

    def __init__(self, engine: str | OcrEngine, options: Mapping[str, Any], normalisation: Normalisation):
        normalise("", normalisation)  # refuses an unknown normalisation now
        self._engine, self._options, self._normalisation = engine, dict(options), normalisation
        self._known: frozenset[str] | None = None
        self._warned: set[str] = set()

    def targets(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> list[list[str]]:
        """The targets of each prompt. Raises ValueError as `prompt_targets` does, and for a target that is mostly unreadable.

        If the engine lacks some characters of a target that is otherwise readable, it warns once.
        """
        found = batch_targets(prompts, metadata, self._normalisation)
        for prompt, targets in zip(prompts, found, strict=True):
            self._check_readable(prompt, targets)
        return found

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Raises PromptErrors with every prompt that `targets` refuses."""
        faults = {}
        for i, (prompt, told) in enumerate(zip(prompts, metadata or [None] * len(prompts), strict=True)):
            try:
                self._check_readable(prompt, prompt_targets(prompt, told, self._normalisation))
            except ValueError as error:
                faults[i] = str(error)
        if faults:
            raise PromptErrors(faults, len(prompts))

    def _check_readable(self, prompt: str, targets: Sequence[str]) -> None:
        text = unicodedata.normalize("NFC", "".join(targets))
        if text.isascii():
            return  # every engine has these
        if self._known is None:
            self._known = known_characters(self._engine, self._options) or frozenset()
        if not self._known:
            return
        shown = [char for char in text if normalise(char, self._normalisation)]  # no spaces, for instance
        lacking = [char.lower() for char in shown if not self._can_read(char)]
        if not lacking:
            return
        says = f"the OCR engine cannot read {' '.join(dict.fromkeys(lacking))}"
        if len(lacking) > len(shown) / 2:
            raise ValueError(
                f"{says} of the text that the prompt {shortened(prompt)} asks for: every image would score about 0; take an "
                "engine with weights for this script (engine_options), or leave the prompt out"
            )
        if not self._warned.issuperset(lacking):
            self._warned.update(lacking)
            logger.warning("%s, as the prompt %s asks for; they count as wrong in every image", says, shortened(prompt))

    def _can_read(self, char: str) -> bool:
        """Whether the engine can give a text that equals this character."""
        forms = (char, char.lower(), char.upper(), unicodedata.normalize("NFKC", char))
        wanted = normalise(char, self._normalisation)
        return any(self._known.issuperset(form) and normalise(form, self._normalisation) == wanted for form in forms)


@cache
def _of_wheel() -> frozenset[str] | None:
    """The characters of the recogniser in rapidocr's wheel, from its ONNX file."""
    package = importlib.util.find_spec("rapidocr")
    model = package and Path(package.origin).parent / "models" / "PP-OCRv6_rec_small.onnx"
    if not model or not model.is_file():
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return frozenset(session.get_modelmeta().custom_metadata_map["character"].split("\n"))


@cache
def _of_folder(folder: Path) -> frozenset[str] | None:
    """The characters of a recogniser in PaddleOCR's format, from its `inference.yml`."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    config = yaml.load((folder / "inference.yml").read_text(encoding="utf-8"), Loader=loader)
    return frozenset(config["PostProcess"]["character_dict"])
