"""Numbers where other callbacks find them, pictures and reports where a logger takes them; MLflow and W&B for real."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_stall import GradientHealth, StallReport, stall_callbacks
from lightning_stall.history import ROOM, ROWS, Curves, History, fold, thin
from lightning_stall.report import render_html
from lightning_stall.sinks import LoggerSink, StallWarning, heatmap
from lightning_stall.testing import Classifier, blobs, deep_sigmoid, healthy, mlp

MakeTrainer = Callable[..., Trainer]


def quiet_family(**report: Any) -> list[Any]:
    return [*stall_callbacks()[:-1], StallReport(table=False, **report)]


# --- trainer.callback_metrics -----------------------------------------------------------------------------------------


def test_early_stopping_and_checkpoints_may_monitor_what_is_logged(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    stop = EarlyStopping("stall/loss/smoothed", stopping_threshold=0.2, check_on_train_epoch_end=True)
    best = ModelCheckpoint(tmp_path, monitor="stall/gradients/total_norm", filename="{epoch}")
    trainer = make_trainer([*quiet_family(), stop, best], max_epochs=30, enable_checkpointing=True)
    trainer.fit(healthy(), blobs(), blobs(shuffle=False, draw=1))
    assert 1 <= trainer.current_epoch < 30
    assert trainer.callback_metrics["stall/loss/smoothed"] < 0.2
    assert best.best_model_score is not None
    assert trainer.callback_metrics["stall/outcome/bad"] == 0


def test_the_loss_is_there_from_the_first_check_on(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer([*quiet_family(), EarlyStopping("stall/loss/smoothed")], max_epochs=2)
    trainer.fit(healthy(), blobs(samples=64), blobs(samples=32, shuffle=False))
    assert torch.isfinite(trainer.callback_metrics["stall/loss/smoothed"])


def test_the_outcome_stands_in_the_progress_bar(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(quiet_family(verbose=True), max_epochs=4, log_every_n_steps=5)
    trainer.fit(healthy(), blobs())
    assert trainer.progress_bar_metrics["outcome"] in ("learning", "converged")


# --- no clutter -------------------------------------------------------------------------------------------------------


def deep(layers: int) -> Classifier:
    return Classifier(nn.Sequential(nn.Linear(8, 16), *(nn.Linear(16, 16) for _ in range(layers)), nn.Linear(16, 4)))


@pytest.mark.parametrize(("most", "curves"), [(64, 0), (100, 72)])
def test_more_than_64_layers_are_no_curves_but_a_picture(
    make_trainer: MakeTrainer, tmp_path: Path, most: int, curves: int
) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    report = StallReport(table=False, max_series=most)
    make_trainer([GradientHealth(), report], logger=logger, max_epochs=2, log_every_n_steps=4).fit(deep(70), blobs())
    logger.finalize("success")
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    layers = [tag for tag in tags["scalars"] if tag.startswith("stall/gradients/layers/")]
    assert len(layers) == curves
    assert tags["images"] == ["stall/gradients/heat_map"]
    assert len(report.hub.curves().layers) == ROWS
    assert all(tag.startswith(("stall/", "train_loss", "epoch")) for tag in tags["scalars"]), "one group"


def test_the_report_stands_among_the_texts_with_links_to_curves(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    with pytest.warns(StallWarning):
        make_trainer(quiet_family(), logger=logger, max_epochs=14).fit(deep_sigmoid(), blobs())
    logger.finalize("success")
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("stall/report/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert "# Why is this training stalled?" in text
    assert "[`net.0`](?tagFilter=/net%5C.0%24#timeseries)" in text
    assert "tagFilter" not in (tmp_path / "stall_report.md").read_text()


def test_other_loggers_get_pictures_and_reports_by_what_they_can_do(tmp_path: Path) -> None:
    sent: list[Any] = []

    class Store:
        def log_image(self, *args: Any, **kwargs: Any) -> None:
            sent.append(("image", args[0] if isinstance(args[0], str) else "pixels", kwargs))

        def log_text(self, *args: Any, **kwargs: Any) -> None:
            sent.append(("text", args, kwargs))

    class MlflowLike:
        experiment, run_id = Store(), "r1"

    class CometLike:
        experiment = Store()

    class NeptuneLike:
        experiment: dict[str, str] = {}

    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    sink = LoggerSink([MlflowLike(), CometLike(), NeptuneLike(), CSVLogger(tmp_path)])
    assert sink.takes_pictures
    sink.picture("stall/gradients/heat_map", pixels, 3)
    sink.report("stall/report", "plain", "linked", 3)
    assert sink.refused == set()
    assert sent == [
        ("image", "r1", {}),
        ("image", "pixels", {"name": "stall/gradients/heat_map", "step": 3}),
        ("text", ("r1", "plain", "stall/report.md"), {}),
        ("text", ("plain",), {"step": 3}),
    ]
    assert NeptuneLike.experiment == {"stall/report": "plain"}
    assert not LoggerSink([CSVLogger(tmp_path), object()]).takes_pictures


# --- the history ------------------------------------------------------------------------------------------------------


def test_the_history_is_bounded_and_even() -> None:
    history = History()
    for step in range(1, 5001):
        history.add(step, {"a/x": float(step)} | ({"late/y": 1.0} if step > 4000 else {}))
    assert ROOM / 2 <= len(history.steps) <= ROOM
    assert len({b - a for a, b in zip(history.steps[:-1], history.steps[1:], strict=True)}) == 1
    assert history.series["a/x"] == [float(s) for s in history.steps]
    assert math.isnan(history.series["late/y"][0])
    assert history.series["late/y"][-1] == 1.0


def test_a_large_group_is_thinned_evenly_and_folded_for_loggers() -> None:
    values = {f"g/{i:03}": float(i) for i in range(200)} | {"other/a": 1.0}
    history = History()
    history.add(1, values)
    history.add(2, values)
    kept = [tag for tag in history.series if tag.startswith("g/")]
    assert (len(kept), kept[0], kept[-1]) == (ROWS, "g/000", "g/199")
    assert fold(values, 64) == {"other/a": 1.0}
    assert fold(values, 200) == values
    assert thin(list("abcde"), 3) == ["a", "c", "e"]


def test_curves_go_through_strict_json() -> None:
    curves = Curves(
        [(2, 1.5), (4, math.nan)], None, [1, 2], {"stall/rate/schedule": [0.1, math.inf]}, {"net.0": [1.0, 2.0]}
    )
    again = Curves.from_dict(json.loads(json.dumps(curves.to_dict(), allow_nan=False)))
    assert str(again.loss) == "[(2.0, 1.5), (4.0, nan)]"
    assert again.layers == curves.layers
    page = render_html([], [], "learning", {}, again)
    assert page.count("<svg") == 3 - (1 if len(curves.layers) < 2 else 0)
    assert "nan" not in page.split("</style>")[-1]


def test_the_heat_map_has_a_row_a_layer() -> None:
    picture = heatmap([1, 2, 4], {"net.0": [1e-6, 1e-5, 0.0], "net.2": [1.0, math.nan, 2.0]})
    assert picture is not None
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert {(253, 231, 37), (68, 1, 84), (207, 34, 46)} <= {tuple(p) for p in picture.reshape(-1, 3).tolist()}
    assert heatmap([], {}) is None


# --- for real ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_for_real(make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'lightning-stall[loggers]'")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "ml").as_uri())
    logger = MLFlowLogger("stalls", tracking_uri=(tmp_path / "ml").as_uri())
    make_trainer(quiet_family(), logger=logger, max_epochs=14).fit(deep_sigmoid(), blobs())
    client = mlflow.tracking.MlflowClient((tmp_path / "ml").as_uri())
    run = client.get_run(logger.run_id)
    assert {"stall/loss/smoothed", "stall/gradients/total_norm", "stall/findings/told"} <= set(run.data.metrics)
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert any(name.endswith("stall/report.md") for name in names)
    assert any(name.endswith("stall/gradients/heat_map.png") for name in names)
    assert any("stall/findings/never-learned/text" in name for name in names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_for_real(make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="pip install 'lightning-stall[loggers]'")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="stalls", save_dir=tmp_path, offline=True)
    callbacks = quiet_family()
    make_trainer(callbacks, logger=logger, max_epochs=14).fit(deep_sigmoid(), blobs())
    summary = dict(logger.experiment.summary)
    wandb.finish()
    assert {"stall/loss/smoothed", "stall/gradients/total_norm", "stall/findings/told"} <= set(summary)
    names = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert any(name.endswith(".wandb") for name in names)
    assert any(name.startswith("heat_map") and name.endswith(".png") for name in names)
    assert [c.failed for c in callbacks] == [None] * len(callbacks)


def test_a_plain_csv_keeps_its_columns(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    make_trainer(quiet_family(), logger=logger, max_epochs=2).fit(Classifier(mlp(batchnorm=True)), blobs())
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"stall/loss/smoothed", "stall/gradients/layers/net.0", "stall/rate/effective"} <= set(header)
