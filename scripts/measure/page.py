"""Is the page of `nsnet ui` smooth? Headless Chromium, which draws with the processor, on a cluster that is up.

What a person feels: how long until the picture is there, the frames while the pointer runs over pods and a trace plays,
and how long the page is deaf while a change comes in.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Line = tuple[str, str, str, bool]
ROOT = Path(__file__).parents[2]

FRAMES = """() => new Promise(done => {
  const spans = []; let last = performance.now();
  const next = now => {
    spans.push(now - last);
    last = now;
    if (spans.length < 120) requestAnimationFrame(next); else done(spans);
  };
  requestAnimationFrame(next);
})"""
CHANGE = """async () => {
  const { draw, shown } = await import("/picture.js");
  const nodes = [...shown.values()].map(one => one.node);
  const spent = [];
  for (let round = 0; round < 10; round += 1) {
    const changed = nodes.map(node => node.kind === "pod" ? { ...node, ready: round % 2 === 0 } : node);
    const start = performance.now();
    draw({ cluster: "", nodes: changed, edges: [] });
    document.body.getBoundingClientRect();
    spent.push(performance.now() - start);
  }
  return spent;
}"""


def measure(pods: int, service: str) -> Iterator[Line]:
    """Lines of the table; `service` is the id of one to trace to."""
    chromium = shutil.which("chromium")
    if chromium is None:
        yield "the page in a browser", "no chromium here", "-", True
        return
    from playwright.sync_api import sync_playwright

    words = [sys.executable, "-m", "nsnet", "ui", "--no-open"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as serving:
        try:
            assert serving.stdout is not None
            url = serving.stdout.readline().strip()
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                yield from _felt(page, url, pods, service)
                browser.close()
        finally:
            serving.send_signal(signal.SIGINT)


def _felt(page: Any, url: str, pods: int, service: str) -> Iterator[Line]:
    page.goto(url)
    page.wait_for_selector(f".pod >> nth={pods - 1}", timeout=60_000, state="attached")
    there = page.evaluate("performance.now()")
    yield f"the page: {pods:,} pods there after", f"{there / 1000:.2f} s", "< 3 s", there < 3000
    page.click(".pod >> nth=0")
    page.click(f'[data-id="{service}"]')
    page.wait_for_selector("#hops li", timeout=60_000)
    page.click("#play")
    page.evaluate(f"window.frames_ = ({FRAMES})()")
    for number in range(20):
        page.hover(f".pod >> nth={number * 7}", force=True)
    spans = sorted(page.evaluate("window.frames_"))
    middle, late = spans[len(spans) // 2], spans[int(len(spans) * 0.95)]
    figures = f"{middle:.0f} ms (95%: {late:.0f}, worst {spans[-1]:.0f})"
    yield "the page: a frame, pointer and trace moving", figures, "<= 17 ms", middle < 17.5
    spent = sorted(page.evaluate(CHANGE))
    figures = f"{spent[len(spent) // 2]:.0f} ms (worst {spent[-1]:.0f})"
    yield "the page: all pods change, until laid out", figures, "< 50 ms", spent[len(spent) // 2] < 50
