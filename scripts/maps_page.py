"""Writes many images with their maps as one self-contained HTML page."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from flow_grpo.map_overlay import COLORS, MEANINGS, Panel, overlay

LOSSLESS_UP_TO = 256  # pixels of the longer side: a JPEG is far smaller above, and smears small pictures

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#ddd, #3a3a3a); --soft: light-dark(#666, #a5a5a5); }
select { font: inherit; }
body { margin: 2rem auto; max-width: 90rem; padding: 0 1rem; font: 15px/1.45 system-ui, sans-serif;
  color: light-dark(#1c1c1c, #eee); background: light-dark(#fff, #161616); }
h1 { font-size: 1.4rem; margin: 0; }
header { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: end; margin-bottom: 1.5rem; }
header div { font-size: .8rem; color: var(--soft); width: 17rem; }
header i { display: block; height: .6rem; border: 1px solid var(--line); margin: .2rem 0; }
header span { display: flex; justify-content: space-between; }
article { border-top: 1px solid var(--line); padding: 1rem 0 1.5rem; }
h2 { font-size: 1rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
p { margin: 0 0 .7rem; color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
section { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 45%), 1fr)); gap: 1rem; }
figure { margin: 0; }
img { display: block; width: 100%; }
img.enlarged { image-rendering: pixelated; }
figcaption { font-size: .85rem; margin-top: .3rem; overflow-wrap: anywhere; }
figcaption small { display: block; font-size: inherit; color: var(--soft); }
"""

SCRIPT = """
const list = document.querySelector("main");
document.querySelector("select").addEventListener("change", event => {
  const column = Number(event.target.value);
  const key = article => JSON.parse(article.dataset.keys)[column];
  [...list.children].sort((a, b) => key(a) - key(b)).forEach(article => list.append(article));
});
"""


@dataclass(frozen=True)
class Row:
    """An image (H, W, 3) uint8 with its file's name, its prompt, and its maps."""

    name: str
    prompt: str
    image: np.ndarray
    panels: Sequence[Panel]


def page(rows: Sequence[Row], title: str) -> str:
    """The page as text. Rows show the same scorers; the page sorts them by name or by any one's score, the lowest first."""
    kinds = dict.fromkeys(panel.map_kind for panel in rows[0].panels)
    scorers = [panel.scorer for panel in rows[0].panels]
    options = "".join(
        f'<option value="{column}">{escape(text)}</option>'
        for column, text in enumerate(["name", *(f"score of {scorer}" for scorer in scorers)])
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{"".join(_legend(kind) for kind in kinds)}
<label>sort by <select autocomplete="off">{options}</select></label>
</header>
<main>
{"".join(_article(index, row) for index, row in enumerate(rows))}</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _legend(kind: str) -> str:
    colors = ", ".join(f"rgb{color}" for color in COLORS[kind])
    ends = "".join(f"<span>{meaning}</span>" for meaning in MEANINGS[kind])
    return f'<div>{kind} maps<i style="background: linear-gradient(to right, {colors})"></i><span>{ends}</span></div>\n'


def _article(index: int, row: Row) -> str:
    keys = json.dumps([index, *(panel.reward for panel in row.panels)])
    figures = _figure(row.image, "image", f"{row.image.shape[1]} × {row.image.shape[0]} pixels")
    for panel in row.panels:
        figures += _figure(overlay(row.image, panel.reward_map, map_kind=panel.map_kind), panel.scorer, panel.caption)
    return (
        f'<article data-keys="{escape(keys)}">\n<h2>{escape(row.prompt) or "(no prompt)"}</h2>\n'
        f"<p>{escape(row.name)}</p>\n<section>\n{figures}</section>\n</article>\n"
    )


def _figure(picture: np.ndarray, title: str, caption: str) -> str:
    small = max(picture.shape[:2]) <= LOSSLESS_UP_TO
    file = io.BytesIO()
    Image.fromarray(picture).save(file, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 90}))
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f'<figure><img class="{"enlarged" if small else "reduced"}" alt="{escape(title)}" '
        f'src="data:image/{"png" if small else "jpeg"};base64,{data}">'
        f"<figcaption>{escape(title)}<small>{escape(caption)}</small></figcaption></figure>\n"
    )
