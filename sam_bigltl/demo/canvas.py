"""The page's own component: the photograph with everything on it.

Its parts are canvas.html, canvas.css and canvas.js.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

from .photos import MOST_BYTES
from .pictures import photo_url

# A download, or text for the clipboard, that the page asked for.
_HAND_OVER = """
watch('value', () => {
  const given = props.value;
  if (!given || given.serial === element.dataset.serial) return;
  element.dataset.serial = given.serial;
  if (given.url) {
    const link = document.createElement('a');
    link.href = given.url; link.download = given.name;
    document.body.append(link); link.click(); link.remove();
  } else if (given.text && navigator.clipboard) navigator.clipboard.writeText(given.text).catch(() => {});
});
"""


@cache
def _part(suffix: str) -> str:
    return Path(__file__).with_suffix(suffix).read_text(encoding="utf-8")


def make_canvas(examples: dict[str, Any]) -> gr.HTML:
    """The canvas; `examples` are photographs (H, W, 3) by name. Events: "act", "open", "compare"."""
    thumbnails = []
    for name, image in examples.items():
        step = max(1, image.shape[0] // 144)
        thumbnails.append({"name": name, "url": photo_url(image[::step, ::step].copy(), 80)})
    return gr.HTML(
        value={}, html_template=_part(".html"), css_template=_part(".css"), js_on_load=_part(".js"), elem_id="canvas",
        apply_default_css=False, examples=thumbnails, most_bytes=MOST_BYTES, photo=None, tokens=None, dense=None,
        regions=None,
    )  # fmt: skip


def make_hand_over() -> gr.HTML:
    """What gives files and text to the browser: its value is what `Session.download` returns and a "serial"."""
    return gr.HTML(value={}, html_template="<span></span>", js_on_load=_HAND_OVER, elem_id="hand-over", visible=True)
