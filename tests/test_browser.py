"""What a person sees: TensorBoard on the directory of real runs, opened in a real browser; the report's page as well.

With LIGHTNING_STALL_PICTURES=DIR the screenshots that the README shows are kept there (`make pictures`).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_stall import stall_callbacks
from lightning_stall.sinks import themes
from lightning_stall.testing import Classifier, blobs, deep_sigmoid, healthy, mlp

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.filterwarnings("ignore"),  # of the browser's driver: not ours
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real runs, with `TensorBoardLogger` and nothing else set up."""
    root = tmp_path_factory.mktemp("runs") / "lightning_logs"
    ill = {
        "healthy": healthy(),
        "vanishing": deep_sigmoid(),
        "rate-too-high": Classifier(mlp(batchnorm=True), rate=3.0, optimizer="momentum"),
    }
    for name, module in ill.items():
        seed_everything(0, verbose=False)
        Trainer(
            accelerator="cpu", max_epochs=14, log_every_n_steps=5, callbacks=stall_callbacks(),
            logger=TensorBoardLogger(root, name=name, version=""), enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(module, blobs())  # fmt: skip
    return root


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # a relative directory: TensorBoard shows it, and the pictures are for the README
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        runs.name,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    server = subprocess.Popen(command, cwd=runs.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):  # until it has read the runs: a page opened sooner stays empty
            try:
                with urlopen(f"http://127.0.0.1:{port}/data/plugin/custom_scalars/layout", timeout=5) as answer:
                    if themes.OUTCOME in answer.read().decode():
                        break
            except OSError:
                pass
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1400, "height": 1180})
        tab.set_default_timeout(60_000)
        yield tab
        browser.close()


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("LIGHTNING_STALL_PICTURES") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shoot(page: Any, path: Path, **settings: Any) -> None:
    page.screenshot(path=path, **settings)
    assert path.stat().st_size > 20_000


def test_a_panel_a_theme_is_drawn(page: Any, address: str, keep: Path) -> None:
    page.goto(f"{address}#custom_scalars")
    for title in themes.ORDER:
        page.get_by_text(title, exact=True).first.wait_for()
    page.get_by_text("Matches (").nth(len(themes.ORDER) - 1).wait_for(state="attached")
    assert "Matches (0)" not in page.get_by_text("Matches (").all_inner_texts(), "each panel has its curves"
    assert page.locator("vz-line-chart2 svg path").count() > 100, "and they are drawn"
    time.sleep(3)  # lines are animated
    shoot(page, keep / "tensorboard-panels.png")


def test_the_heat_map_is_shown(page: Any, address: str, keep: Path) -> None:
    page.goto(f"{address}#images")
    page.get_by_text("stall/gradients/heat_map").first.wait_for()
    picture = page.locator("tf-image-loader img").first
    picture.wait_for()
    assert picture.evaluate("async i => { await i.decode(); return i.naturalWidth; }") > 300
    shoot(page, keep / "tensorboard-heat-map.png", clip={"x": 0, "y": 0, "width": 1400, "height": 620})


def test_the_report_is_text_whose_modules_lead_to_their_curves(page: Any, address: str, keep: Path) -> None:
    page.goto(f"{address}#text")
    link = page.locator("a", has_text="net.0").first
    link.wait_for()
    shoot(page, keep / "tensorboard-findings.png", clip={"x": 0, "y": 0, "width": 1400, "height": 720})
    assert link.get_attribute("href").endswith("#timeseries")
    page.goto(address + link.get_attribute("href"))
    page.get_by_text("net.0", exact=False).first.wait_for()


def test_the_page_of_the_report_is_drawn_without_a_network(page: Any, runs: Path, keep: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((runs / "vanishing" / "stall_report.html").as_uri())
    assert [url for url in asked if not url.startswith("file:")] == []
    boxes = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)")
    assert len(boxes) == 5
    assert min(boxes) > 500
    assert page.get_by_text("Gradients vanish", exact=False).count()
    shoot(page, keep / "report.png", clip={"x": 120, "y": 0, "width": 1160, "height": 1180})
