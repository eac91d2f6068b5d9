"""The page: its layout, and what happens on it."""

from __future__ import annotations

import base64
import binascii
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np

from ..errors import InputError
from .canvas import make_canvas, make_hand_over
from .engine import Engine, Stopped
from .photos import MOST_BYTES, make_photo, open_photo
from .session import Session

SHORTCUTS = """
| key | |
|---|---|
| `O`, `B` | the next clicks are on the object, or on the background |
| Shift + click | the other of the two, once |
| drag, or `R` and two clicks | a box |
| `1` `2` `3` | choose a mask |
| `N` | new object |
| `Z`, `Y` | undo, redo |
| Backspace | clear everything |
| Esc | forget a box that was begun |
"""
CSS = """
.gradio-container { max-width: 1500px !important; margin: 0 auto; }
#bar { height: 8px; border-radius: 4px; background: var(--background-fill-secondary); overflow: hidden; }
#bar div { height: 100%; background: var(--color-accent); }
#hand-over { display: none; }
#canvas .html-container { padding: 0; }
footer { display: none !important; }
"""
THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
)  # no fonts from elsewhere
_serials = itertools.count(1)


def build_app(engine: Engine, keep_ratio: float | str, examples: dict[str, np.ndarray], longest: int) -> gr.Blocks:
    """The page.

    Args:
        keep_ratio: that it starts with, or "auto".
        examples: photographs (H, W, 3) by name.
        longest: pixels of a photograph's long side, beyond which it is made smaller.
    """
    tuned: dict[str, Any] = dict(queue=True, show_progress="hidden", api_visibility="private")
    often = tuned | dict(concurrency_limit=4, concurrency_id="clicks", trigger_mode="multiple")
    seldom = tuned | dict(concurrency_limit=1, concurrency_id="encoder")
    with gr.Blocks(title="sam_bigltl", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        session = gr.State(Session(engine, keep_ratio), time_to_live=4 * 3600)
        gr.Markdown("# Segment anything, with a big.LITTLE encoder")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=480):
                canvas = make_canvas(examples)
            with gr.Column(scale=1, min_width=280):
                auto = keep_ratio == "auto"
                with gr.Group():
                    ratio = gr.Slider(
                        0.05, 1.0, 0.5 if isinstance(keep_ratio, str) else keep_ratio, step=0.05, label="keep_ratio",
                        info="share of the tokens that the big blocks compute", interactive=engine.routed,
                        elem_id="ratio",
                    )  # fmt: skip
                    automatic = gr.Checkbox(
                        auto, label="auto: as many as the image needs", interactive=engine.routed, elem_id="auto"
                    )
                with gr.Accordion("Everything", open=False, elem_id="everything"):
                    points = gr.Slider(4, 32, 12, step=1, label="points a side")
                    iou = gr.Slider(0.0, 1.0, 0.7, step=0.01, label="least predicted IoU")
                    stability = gr.Slider(0.0, 1.0, 0.85, step=0.01, label="least stability")
                    bar = gr.HTML(_bar(0.0), elem_id="progress")
                    with gr.Row():
                        start = gr.Button("Segment everything", variant="primary", elem_id="start", min_width=120)
                        stop = gr.Button("Stop", elem_id="stop", min_width=60)
                with gr.Accordion("Download", open=True):
                    with gr.Row():
                        buttons = {
                            kind: gr.Button(text, size="sm", elem_id=f"download-{kind}", min_width=60)
                            for kind, text in (("mask", "Mask"), ("cutout", "Cut-out"), ("coco", "COCO"))
                        }
                    python = gr.Button("Copy as Python", size="sm", elem_id="python")
                    code = gr.Code(language="python", visible=False, elem_id="code", label="the same mask, from Python")
                with gr.Accordion("Keys", open=False):
                    gr.Markdown(SHORTCUTS)
                hand_over = make_hand_over()

        def open_(own: Session, event: gr.EventData) -> Any:
            def run() -> dict[str, Any]:
                own.open(_photo(event._data, examples, longest))
                return dict(photo=own.picture(), tokens=own.tokens(), regions=own.regions_picture())

            return _answer(own, run)

        def act(own: Session, event: gr.EventData) -> Any:
            data = event._data if isinstance(event._data, dict) else {}

            def run() -> dict[str, Any]:
                own.act(data)
                return dict(regions=own.regions_picture()) if data.get("kind") == "clear" else {}

            return _answer(own, run)

        def encode(own: Session, value: float, automatic: bool) -> Any:
            def run() -> dict[str, Any]:
                own.set_ratio("auto" if automatic else float(min(max(value, 0.01), 1.0)))
                return dict(tokens=own.tokens()) if own.photo is not None else {}

            return _answer(own, run)

        def compare(own: Session) -> Any:
            with own.lock:
                return gr.update(dense=own.dense()) if own.photo is not None else gr.skip()

        def everything(own: Session, side: float, iou: float, stability: float) -> Iterator[tuple[Any, Any]]:
            options = dict(points_per_side=int(side), pred_iou_thresh=iou, stability_score_thresh=stability)
            for share, found in _in_background(own, options):
                yield _bar(share), gr.skip() if found is None else gr.update(regions=found)

        def download(kind: str) -> Callable[[Session], Any]:
            def run(own: Session) -> Any:
                try:
                    with own.lock:
                        return own.download(kind) | {"serial": str(next(_serials))}
                except InputError as error:
                    gr.Warning(str(error))
                    return gr.skip()

            return run

        def as_python(own: Session) -> tuple[Any, Any]:
            given = download("python")(own)
            if not isinstance(given, dict) or "text" not in given:
                return gr.skip(), gr.skip()
            return given, gr.update(value=given["text"], visible=True)

        canvas.open(open_, session, canvas, **seldom)
        canvas.act(act, session, canvas, **often)
        canvas.compare(compare, session, canvas, **(seldom | dict(trigger_mode="always_last")))
        for control in (ratio, automatic):  # while the slider moves, only where it is when the encoder is free again
            control.change(encode, [session, ratio, automatic], canvas, **(seldom | dict(trigger_mode="always_last")))
        start.click(everything, [session, points, iou, stability], [bar, canvas], **(tuned | dict(concurrency_limit=2)))
        stop.click(lambda own: own.stop.set(), session, None, **(tuned | dict(queue=False)))
        for kind, button in buttons.items():
            button.click(download(kind), session, hand_over, **often)
        python.click(as_python, session, [hand_over, code], **often)
    return app.queue(max_size=64, default_concurrency_limit=4)


def _answer(own: Session, run: Callable[[], dict[str, Any]]) -> Any:
    """The scene after `run`, and the props that it returns; what cannot be done becomes a toast."""
    with own.lock:
        message, props = "", {}
        try:
            props = run()
        except InputError as error:
            message = str(error)
            gr.Warning(message)
        return gr.update(value=own.scene(message), **props)


def _photo(data: Any, examples: dict[str, np.ndarray], longest: int) -> Any:
    """The photograph that a message of the page brings. Raises InputError."""
    data = data if isinstance(data, dict) else {}
    if (name := data.get("example")) is not None:
        if name not in examples:
            raise InputError("there is no such example: reload the page")
        return make_photo(examples[name], f"{name}.png", longest)
    text, name = data.get("data"), str(data.get("name", "photo"))
    if not isinstance(text, str):
        raise InputError("the page sent no photograph: reload it")
    if len(text) > MOST_BYTES * 4 / 3 + 1000:
        raise InputError(f"{name} is too large: the demo takes {MOST_BYTES / 2**20:.0f} MB at most")
    try:
        content = base64.b64decode(text.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the page sent a damaged photograph: choose it again") from None
    return open_photo(content, name, longest)


def _in_background(own: Session, options: dict[str, float]) -> Iterator[tuple[float, dict | None]]:
    """Everything mode: (share that is done, None) again and again, at the end the regions' picture."""
    if own.photo is None or own.encoded is None:
        gr.Warning("there is no photograph yet: drop one on the page, or choose an example")
        return
    photo, encoded = own.photo, own.encoded
    news: queue.Queue[Any] = queue.Queue()
    own.stop = stop = threading.Event()  # of this run alone

    def work() -> None:
        try:
            news.put(own.engine.everything(photo.image, encoded, options, news.put, stop))
        except Stopped:
            news.put("stopped")
        except Exception as error:  # it is raised where the page waits
            news.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while isinstance(found := news.get(), float):
            yield found, None
    finally:
        stop.set()  # also where the page went away
    if isinstance(found, Exception):
        raise found
    if found == "stopped" or own.photo is not photo:
        yield 0.0, None
        return
    with own.lock:
        own.regions = found
        yield 1.0, own.regions_picture()


def _bar(share: float) -> str:
    inner = f'<div style="width: {100 * share:.0f}%"></div>'
    return f'<div id="bar" role="progressbar" aria-valuenow="{share:.2f}">{inner}</div>'
