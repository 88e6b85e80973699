"""What every page that shows light is made of: a stage of four lamps (show.js, show.css), in one file that runs its own script alone.

Two pages stand on this: the one on which raters compare (``monitoring/compare.py``) and the one of a song (``models/cqtml/page.py``).
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import numpy as np

LAMPS = 4
ROUNDING = 1e-3  # beyond 0..1, as half precision leaves it
HERE = Path(__file__).parent


def pack(curves: np.ndarray) -> str:
    """Brightness (4, T) in 0..1 as the pages take it: base64 of 255 steps a value, lamp after lamp. ValueError for anything else."""
    curves = np.asarray(curves, dtype=np.float32)
    if curves.ndim != 2 or curves.shape[0] != LAMPS or not curves.shape[1]:
        raise ValueError(f"curves of shape {curves.shape}, not ({LAMPS}, T)")
    if not (np.abs(curves - 0.5) <= 0.5 + ROUNDING).all():  # also where a value is NaN
        raise ValueError("brightness outside 0..1")
    return base64.b64encode(np.rint(curves.clip(0, 1) * 255).astype(np.uint8).tobytes()).decode()


def render(template: Path, loads: str, **values: object) -> str:
    """The page of ``template`` (Jinja; every value is text there, never markup), with script and style inside.

    ``template`` has its own .js and .css beside it. ``loads``: what the page may load besides itself, as directives of its Content
    Security Policy; it names script and style by their hashes, so that nothing else runs, whatever a value holds.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    style, script = (
        "\n".join(path.with_suffix(kind).read_text() for path in (HERE / "show", template)) for kind in (".css", ".js")
    )
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        f"base-uri 'none'; form-action 'none'; {loads}"
    )
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<link rel="icon" href="data:,">\n<style>{style}</style>'
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template.read_text()).render(
        **values,
        head=Markup(head),  # ours alone: no value is in it
        script=Markup(f'<script type="module">{script}</script>'),
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
