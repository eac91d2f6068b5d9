"""The page: an element that Gradio shows and logs in to, and the routes that its modules ask."""

from __future__ import annotations

from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from .api import Api, Settings
from .engine import Engine
from .examples import Example
from .guard import Guard, Hosts

_CSS = """
.gradio-container { max-width: none !important; padding: 0 !important; }
.gradio-container .main.fillable { max-width: none !important; margin: 0 !important; padding: 0 !important; }
#sam_bigltl .html-container { padding: 0; }
footer { display: none !important; }
"""
# The page may be served below any path; an import cannot be told so by its own address.
_LOAD = """
const root = new URL((window.gradio_config?.root ?? '').replace(/\\/$/, '') + '/sam_bigltl/', document.baseURI).href;
const place = element.querySelector('.sam-bigltl');
Promise.all([import(root + 'page/app.js'), import(root + 'page/http_backend.js')]).then(
  ([app, backend]) => app.mount(place, new backend.HttpBackend(root)),
).catch((error) => { place.textContent = `The page could not be loaded (${error.message}): reload it.`; });
"""
_THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
)  # no fonts from elsewhere


class Demo:
    """The page and its server.

    Attributes:
        blocks: Gradio's part.
        hosts: names under which it may be called.
    """

    def __init__(self, engine: Engine, settings: Settings, examples: list[Example], hosts: Hosts) -> None:
        self.hosts, self.api = hosts, Api(engine, settings, examples)
        with gr.Blocks(title="sam_bigltl", analytics_enabled=False) as self.blocks:
            gr.HTML(
                value="", html_template='<div class="sam-bigltl">Loading the page ...</div>', js_on_load=_LOAD,
                elem_id="sam_bigltl", apply_default_css=False,
            )  # fmt: skip

    def inside(self) -> dict[str, Any]:
        """What Gradio's application holds besides Gradio: the routes, and the guard before all routes."""
        return {"routes": self.api.routes(), "middleware": [Middleware(Guard, hosts=self.hosts)]}

    def launch(self, **arguments: Any) -> None:
        """Serve it in a thread, by the arguments of `gr.Blocks.launch`."""
        self.blocks.launch(
            app_kwargs=self.inside(), ssr_mode=False, theme=_THEME, css=_CSS, footer_links=[], quiet=True,
            prevent_thread_lock=True, **arguments,
        )  # fmt: skip
        if self.blocks.share_url:
            self.hosts.add_url(self.blocks.share_url)
