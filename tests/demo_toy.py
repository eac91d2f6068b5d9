"""The demo's server with a tiny model, in this process: no port, no browser."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import pytest
import torch
from helpers import picture
from little_models import little_student
from PIL import Image
from starlette.testclient import TestClient

from sam_bigltl.demo import engine as engine_module
from sam_bigltl.demo.api import Settings
from sam_bigltl.demo.app import Demo
from sam_bigltl.demo.engine import Engine
from sam_bigltl.demo.everything import Options
from sam_bigltl.demo.examples import Example
from sam_bigltl.demo.guard import Hosts

OPTIONS = Options(4, 0.4, 0.6)
ROOT = "/sam_bigltl/"
POINT = {"points": [[20, 15]], "labels": [1], "box": None}


def tiny_engine(memory: int = 2**24) -> Engine:
    """An engine of a tiny model of ours with random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "load_sam", lambda path: little_student().eval())
        return Engine(Path("folder/tiny.safetensors"), torch.device("cpu"), memory=memory)


def encoded(image: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def application(
    engine: Engine, keep_ratio: float | str = 0.5, max_side: int = 1280, auth: Any = None, hosts: Hosts | None = None
) -> Any:
    """Gradio's application with everything of ours in it, as `launch` makes it."""
    example = Example("cat", "A cat", picture(), encoded(picture()), "data:,")
    demo = Demo(engine, Settings(keep_ratio, max_side, OPTIONS), [example], hosts or Hosts(["testserver"]))
    demo.blocks.auth = auth
    return gradio.routes.App.create_app(demo.blocks, app_kwargs=demo.inside())


def client(engine: Engine, **options: Any) -> TestClient:
    """Someone who asks it."""
    return TestClient(application(engine, **options), base_url="http://testserver")


def opened(asking: TestClient, image: np.ndarray | None = None, name: str = "a.png") -> dict[str, Any]:
    """What the server says of a photograph."""
    answer = asking.post(ROOT + "photos", params={"name": name}, content=encoded(picture() if image is None else image))
    assert answer.status_code == 200, answer.text
    return answer.json()
