"""Measure the built page in headless Chromium: from opening a photograph to its first mask, the encoder, and clicks.

`python demo/web/measure.py` prints a table. Build the page first (make demo-web), and let nothing else run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import threading
from pathlib import Path
from typing import Any

from serve import DIST, open_server

from sam_bigltl.errors import ArgumentParser, InputError, run_cli

PATIENCE = 300_000  # milliseconds
FLAGS = ["--no-sandbox", "--disable-background-networking", "--no-first-run"]
SHOWN = "globalThis.crossOriginIsolated && document.getElementById('app')?.shadowRoot?.querySelector('.stage')"
READY = "document.getElementById('said')?.textContent.includes('offline')"

FIRST_MASK = """async ([ratio]) => {
    const { backend } = document.getElementById('app'), start = performance.now();
    const { photo } = await backend.openExample('coffee'), opened = performance.now();
    await backend.encode(photo.key, ratio);
    const encoded = performance.now();
    await backend.masks(photo.key, ratio, { points: [[300, 140]], labels: [1], box: null });
    return { key: photo.key, open: opened - start, encode: encoded - opened, first: performance.now() - start };
}"""
# A photograph of other pixels each time: what is kept takes no time.
ENCODE = """async ([ratio, runs]) => {
    const { backend } = document.getElementById('app'), times = [];
    for (let run = 0; run <= runs; run++) {
        const canvas = new OffscreenCanvas(640, 480), context = canvas.getContext('2d');
        context.fillStyle = `rgb(${Math.random() * 255} ${Math.random() * 255} ${Math.random() * 255})`;
        context.fillRect(0, 0, 640, 480);
        const photo = await backend.open(await canvas.convertToBlob(), 'plain.png');
        times.push((await backend.encode(photo.key, ratio)).milliseconds);
    }
    return times.slice(1);
}"""
CLICK = """async ([key, ratio, runs]) => {
    const { backend } = document.getElementById('app'), times = [];
    for (let run = 0; run <= runs; run++) {
        const start = performance.now();
        await backend.masks(key, ratio, { points: [[300 + run, 140]], labels: [1], box: null });
        times.push(performance.now() - start);
    }
    return times.slice(1);
}"""
EVERYTHING = """async ([key, ratio]) => {
    const { backend } = document.getElementById('app'), start = performance.now();
    await backend.everything(key, ratio, (await backend.info()).everything, () => {});
    return performance.now() - start;
}"""


def run(args: argparse.Namespace) -> None:
    """Measure and print. Raises InputError."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise InputError("Chromium is driven by playwright: pip install playwright") from None
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    server = open_server(args.folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=[*FLAGS, *([] if args.gpu else ["--disable-gpu"])]
        )
        first = [_first_mask(browser, server.server_port, ratio) for ratio in (0.5, 1.0) for _ in range(args.visits)]
        page = _visit(browser.new_context(), server.server_port)
        print(f"Chromium {browser.version}, {os.cpu_count()} processors. {page.inner_text('#said')}")
        print(
            "\n| seconds from opening a photograph to its first mask | keep_ratio | open | encode | in all |"
            "\n|---|---:|---:|---:|---:|"
        )
        for visit in first:
            times = " | ".join(f"{visit[name] / 1e3:.2f}" for name in ("open", "encode", "first"))
            print(f"| a new visitor, the model not yet loaded | {visit['ratio']} | {times} |")
        print("\n| ms, median (lowest to highest) | |\n|---|---:|")
        for ratio in (0.25, 0.5, 0.75, 1.0):
            _row(f"encoder, keep_ratio {ratio}", page.evaluate(ENCODE, [ratio, args.runs]))
        key = page.evaluate(FIRST_MASK, [0.5])["key"]
        _row("click", page.evaluate(CLICK, [key, 0.5, args.runs]))
        _row("everything mode", [page.evaluate(EVERYTHING, [key, 0.5])])
        browser.close()
    server.shutdown()


def _visit(context: Any, port: int) -> Any:
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_function(READY)
    return page


def _first_mask(browser: Any, port: int, ratio: float) -> dict[str, Any]:
    """In a new profile, as soon as the page shows: the model is still being loaded."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_function(SHOWN)
    found = page.evaluate(FIRST_MASK, [ratio])
    context.close()
    return {**found, "ratio": ratio}


def _row(name: str, times: list[float]) -> None:
    print(f"| {name} | {statistics.median(times):.0f} ({min(times):.0f} to {max(times):.0f}) |")
    sys.stdout.flush()


def main() -> None:
    """The command line."""
    parser = ArgumentParser(prog="measure.py", description="Times of the page that make demo-web builds, in Chromium.")
    parser.add_argument("--folder", type=Path, default=DIST, help="of the page (demo/web/dist)")
    parser.add_argument("--runs", type=int, default=9, help="of the encoder and of a click (9)")
    parser.add_argument("--visits", type=int, default=3, help="new profiles that open a photograph (3)")
    parser.add_argument("--gpu", action="store_true", help="leave Chromium its GPU: WebGPU where there is one")
    run_cli(parser.prog, run, parser.parse_args())


if __name__ == "__main__":
    main()
