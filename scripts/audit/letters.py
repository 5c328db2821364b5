"""What the OCR audit draws: words of a language, and the font for them."""

import importlib.util
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFont

from flow_grpo.text_maps.targets import prompt_targets

DATASETS = Path(__file__).parents[2] / "dataset"
LATIN_WORDS = [
    "SALE",
    "COFFEE",
    "MUSIC",
    "HOTEL",
    "BREAD",
    "GARDEN",
    "NORTH",
    "LIGHT",
    "RIVER",
    "TRAIN",
    "WINTER",
    "MARKET",
    "BOOKS",
    "PIZZA",
    "DANCE",
    "PHOTO",
    "CANDY",
    "SPACE",
    "TIGER",
    "QUIET",
]
CHINESE_WORDS = [
    "欢迎光临",
    "新年快乐",
    "生日快乐",
    "今日特价",
    "营业时间",
    "请勿触摸",
    "禁止停车",
    "小心地滑",
    "清风明月",
    "平安是福",
    "谢谢观看",
    "中国邮政",
    "人民公园",
    "吉祥如意",
    "安全第一",
    "豆浆油条",
    "牛肉面",
    "图书馆",
    "火车站",
    "出口",
]
_NOTO = "noto_cjk_sans_otc"  # its package carries the font in one file, five faces of one design
_NOTO_FILE, _SIMPLIFIED_CHINESE = "NotoSansCJK-Regular.ttc", 2


@dataclass(frozen=True)
class Letters:
    """words: what is drawn. font: of a size in pixels. others: the letters that a wrong one is drawn from.

    prompts: a file of prompts whose quoted texts are read as they are.
    """

    words: list[str]
    font: Callable[[float], ImageFont.FreeTypeFont]
    others: str
    prompts: Path


LATIN = Letters(LATIN_WORDS, ImageFont.load_default, string.ascii_uppercase, DATASETS / "ocr" / "test.txt")


def chinese(font: Path | None = None) -> Letters:
    """Simplified characters. font: a file with them; None takes Noto Sans CJK of the package noto-cjk-sans-otc.

    Raises FileNotFoundError where there is no such file.
    """
    package, face = importlib.util.find_spec(_NOTO), 0
    if font is None and package:
        font, face = Path(package.origin).parent / _NOTO_FILE, _SIMPLIFIED_CHINESE
    if font is None or not font.is_file():
        raise FileNotFoundError(
            f"no font with Chinese characters: {font or 'noto-cjk-sans-otc is not installed'}; "
            "pip install noto-cjk-sans-otc (15 MB, OFL 1.1), or name a font file with --font"
        )
    others = "".join(sorted(set("".join(CHINESE_WORDS))))
    prompts = DATASETS / "ocr_zh" / "test.txt"
    return Letters(CHINESE_WORDS, lambda size: ImageFont.truetype(font, size, index=face), others, prompts)


def texts_of(letters: Letters, number: int) -> list[str]:
    """The first texts, none twice, that the prompts ask for."""
    prompts = letters.prompts.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(text for prompt in prompts for text in prompt_targets(prompt)))[:number]
