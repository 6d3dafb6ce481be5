"""Every sink against the real thing: warnings filters, files, and Lightning's own loggers read back from disk."""

from __future__ import annotations

import csv
import json
import math
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from lightning_stall.finding import Finding
from lightning_stall.replay import read_findings
from lightning_stall.report import render_finding
from lightning_stall.sinks import ConsoleSink, JsonlSink, LoggerSink, StallWarning, clean_tag, layout, write_layout

SPIKE = Finding(
    "exploding-gradients", 12, 0, "warning", "Norm 4.2e+05.", "Clip.", {"norm": 4.2e5, "loss": math.nan}, ("net.0",)
)
NOTE = Finding("vanishing-gradients", 40, 1, "info", "Gradients are 1e-9.")
LOST = Finding("nonfinite-loss", 41, 1, "critical", "The loss is NaN.", remedy="Skipped the step.")


@pytest.fixture
def second_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)


@contextmanager
def listen() -> Iterator[list[warnings.WarningMessage]]:
    """Every warning raised inside, repeats too."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield told


def events(logger: TensorBoardLogger) -> EventAccumulator:
    logger.experiment.flush()
    return EventAccumulator(logger.log_dir).Reload()


def texts(read: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in read.Tensors(f"{tag}/text_summary")]


# --- console ----------------------------------------------------------------------------------------------------------


def test_console_warns_of_what_speaks_at_the_users_line() -> None:
    with listen() as told:
        for finding in (SPIKE, NOTE, LOST):
            ConsoleSink()(finding)
    assert [str(w.message) for w in told] == [render_finding(SPIKE), render_finding(LOST)]
    assert {w.filename for w in told} == {__file__}


def speak(*_: Any) -> None:
    ConsoleSink()(SPIKE)


def test_console_points_at_the_fit_from_inside_a_run(tmp_path: Path) -> None:
    # a hook that lives in the package, so that this file stands for the user's script alone
    hook = FunctionType(speak.__code__, {**globals(), "__name__": "lightning_stall.callbacks.some"})
    callback = type("Some", (Callback,), {"on_train_batch_end": hook})()
    trainer = Trainer(
        max_steps=1, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, accelerator="cpu", limit_val_batches=0,
    )  # fmt: skip
    with listen() as told:
        trainer.fit(BoringModel())  # here
    stalls = [w for w in told if w.category is StallWarning]
    lines = Path(__file__).read_text().split("\n")
    assert [(w.filename, lines[w.lineno - 1].strip()) for w in stalls] == [
        (__file__, "trainer.fit(BoringModel())  # here")
    ]


def test_warnings_as_errors_do_not_end_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConsoleSink()(SPIKE)
    assert capsys.readouterr().err == render_finding(SPIKE) + "\n"


def test_a_filter_silences_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", StallWarning)
        ConsoleSink()(SPIKE)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("second_rank")
def test_one_rank_writes(tmp_path: Path) -> None:
    logger, careless = TensorBoardLogger(tmp_path / "tb"), Recorder()  # the latter does not know of ranks
    sink = LoggerSink([logger, careless])
    for take in (ConsoleSink(), JsonlSink(tmp_path / "run"), sink):
        take(SPIKE)  # a warning would be an error here
    sink.numbers({"stall/x": 1.0}, step=0)
    write_layout([logger], {"x": ["stall/x$"]})
    assert list(tmp_path.iterdir()) == []
    assert careless.sent == []


# --- a file of findings -----------------------------------------------------------------------------------------------


def refuse(word: str) -> float:
    raise AssertionError(f"{word} is no JSON")


def test_findings_come_back_from_the_file(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == [], "nothing is made before the first finding"
    odd = Finding(
        "my-own", 5, 0, "warning", "é|\n<b>", evidence={"n": math.nan, "i": math.inf, "m": -math.inf, "z": -0.0}
    )
    for finding in (NOTE, LOST, odd):
        sink(finding)
    lines = Path(sink.path).read_text().split("\n")
    assert lines.pop() == ""
    assert "run" in json.loads(lines.pop(0))
    assert [json.loads(line, parse_constant=refuse)["code"] for line in lines] == [NOTE.code, LOST.code, "my-own"]
    *first, last = read_findings(sink.path)
    assert first == [NOTE, LOST]
    assert {k: str(v) for k, v in last.evidence.items()} == {"n": "nan", "i": "inf", "m": "-inf", "z": "-0.0"}
    assert last.summary == odd.summary


def test_the_file_goes_on_after_pickling_and_after_a_kill(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    sink(NOTE)
    with open(sink.path, "a") as file:
        file.write('{"code": "nonfinite-lo')
    pickle.loads(pickle.dumps(sink))(LOST)
    assert read_findings(tmp_path) == [NOTE, LOST]


def test_an_unwritable_directory_is_told_once_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the directory should be")
    sink = JsonlSink(tmp_path / "taken")
    with listen() as told:
        sink(NOTE)
        sink(LOST)
    (warning,) = told
    assert warning.category is StallWarning
    assert re.match("Findings are not kept in .*taken", str(warning.message))
    (tmp_path / "taken").unlink()
    sink(SPIKE)
    assert [f.code for f in read_findings(tmp_path / "taken")] == [SPIKE.code]


def test_numbers_of_other_libraries_become_plain(tmp_path: Path) -> None:
    import numpy as np
    import torch

    JsonlSink(tmp_path)(
        Finding("my-own", 1, 0, "warning", "s", evidence={"a": np.float32(0.5), "b": torch.tensor(2.0)})
    )
    assert read_findings(tmp_path)[0].evidence == {"a": 0.5, "b": 2.0}


# --- loggers ----------------------------------------------------------------------------------------------------------


def test_tensorboard_holds_numbers_text_and_panels(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="run")
    sink = LoggerSink([logger])
    write_layout([logger], {"gradient norm": ["stall/gradients/norm$"]})
    sink.numbers({"stall/gradients/norm": 3.5, "stall/gradients/layers/net.0": math.inf}, step=11)
    sink.numbers({"stall/gradients/norm": 2.5}, step=12)
    for finding in (SPIKE, NOTE, LOST):
        sink(finding)
    read = events(logger)
    assert {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]} == {
        "stall/gradients/norm": [(11, 3.5), (12, 2.5)],
        "stall/gradients/layers/net.0": [(11, math.inf)],
        "stall/findings/exploding-gradients": [(12, 1.0)],
        "stall/findings/nonfinite-loss": [(41, 2.0)],
    }
    ((step, text),) = texts(read, "stall/findings/nonfinite-loss/text")
    assert step == 41
    assert text.replace("\n    ", "\n").removeprefix("    ") == render_finding(LOST), (
        "a Markdown code block, line by line"
    )
    assert len(list(Path(logger.log_dir).iterdir())) == 1, "one event file, no directories beside it"


def test_csv_holds_the_numbers(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="run")
    sink = LoggerSink([logger])
    sink.numbers({"stall/a": 1.0, "stall/b": math.nan}, step=4)
    sink(LOST)
    sink.numbers({}, step=5)
    logger.save()
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    assert rows == [
        {"stall/a": "1.0", "stall/b": "nan", "step": "4"},
        {"stall/findings/nonfinite-loss": "2.0", "step": "41"},
    ]


def test_the_caller_owns_the_step_axis(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    LoggerSink([logger], axis=lambda finding: 4 * finding.step - 1)(SPIKE)
    read = events(logger)
    assert [e.step for e in read.Scalars("stall/findings/exploding-gradients")] == [47]
    assert [step for step, _ in texts(read, "stall/findings/exploding-gradients/text")] == [47]


class Broken(CSVLogger):
    def log_metrics(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")


def test_a_failing_logger_is_told_once_and_left_out(tmp_path: Path) -> None:
    good = CSVLogger(tmp_path, name="good")
    sink = LoggerSink([Broken(tmp_path, name="bad"), good])
    with listen() as told:
        for step in range(3):
            sink.numbers({"stall/a": float(step)}, step=step)
    (warning,) = told
    assert re.match("Broken refused numbers .*no route to host", str(warning.message))
    assert [row["stall/a"] for row in good.experiment.metrics] == [0.0, 1.0, 2.0]


class Recorder:
    """What a remote logger would be sent. Their packages are not here; what is called is all that is tested."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.sent.append((dict(values), step))
        values.clear()  # some loggers pop keys from what they get


class LikeWandb(Recorder):
    @property
    def experiment(self) -> Any:
        raise AssertionError("creating a run is not needed for text")

    def log_text(self, key: str, columns: list[str], data: list[list[str]], step: int) -> None:
        self.sent.append((key, columns, data, step))


class Client:
    def __init__(self, sent: list[Any]) -> None:
        self.sent = sent

    def log_text(self, *args: Any, **kwargs: Any) -> None:
        self.sent.append((args, kwargs))


def with_client(**fields: Any) -> Any:
    logger = Recorder()
    vars(logger).update(experiment=Client(logger.sent), **fields)
    return logger


def test_text_goes_where_a_logger_takes_it_and_each_gets_its_own_numbers() -> None:
    wandb, mlflow, comet, plain = LikeWandb(), with_client(run_id="r1"), with_client(), Recorder()
    LoggerSink([wandb, mlflow, comet, plain])(LOST)
    number = ({"stall/findings/nonfinite-loss": 2.0}, 41)
    tag, text = "stall/findings/nonfinite-loss/text", render_finding(LOST)
    assert wandb.sent == [number, (tag, ["step", "finding"], [["41", text]], 41)]
    assert mlflow.sent == [number, (("r1", text, f"{tag}/step_41.txt"), {})]
    assert comet.sent == [number, ((text,), {"step": 41})]
    assert plain.sent == [number]


def test_a_store_that_takes_no_text_still_gets_numbers() -> None:
    class NoStore(Recorder):
        def log_text(self, *_: Any, **__: Any) -> None:
            raise PermissionError("read-only")

    logger = NoStore()
    sink = LoggerSink([logger])
    with listen() as told:
        sink(LOST)
        sink(SPIKE)
    (warning,) = told
    assert re.match("NoStore refused text", str(warning.message))
    assert [step for _, step in logger.sent] == [41, 12]


def test_no_logger_and_lightnings_dummy_are_quiet() -> None:
    for loggers in ([], [DummyLogger()]):
        sink = LoggerSink(loggers)
        sink.numbers({"stall/a": 1.0}, step=0)
        sink(SPIKE)
        write_layout(loggers, {"a": ["stall/a$"]})
        assert sink.refused == set()


def test_a_logger_sink_pickles(tmp_path: Path) -> None:
    sink = pickle.loads(pickle.dumps(LoggerSink([CSVLogger(tmp_path)])))
    sink(LOST)
    assert sink.loggers[0].experiment.metrics == [{"stall/findings/nonfinite-loss": 2.0, "step": 41}]


# --- panels -----------------------------------------------------------------------------------------------------------


def panels(logger: TensorBoardLogger) -> list[dict[str, list[str]]]:
    found = []
    for event in events(logger).Tensors("custom_scalars__config__"):
        (category,) = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category
        assert category.title == "lightning_stall"
        found.append({chart.title: list(chart.multiline.tag) for chart in category.chart})
    return found


def test_panels_are_written_once_and_read_back(tmp_path: Path) -> None:
    groups = {"gradient norm": ["stall/gradients/norm$"], "layers": ["stall/gradients/layers/.*", "stall/x$"]}
    logger, table = TensorBoardLogger(tmp_path, name="run"), CSVLogger(tmp_path, name="csv")
    write_layout([logger, table], groups)
    write_layout([logger], {"late": ["x"]})
    assert panels(logger) == [groups]
    other = TensorBoardLogger(tmp_path, name="other", prefix="a.b")
    write_layout([other], {"x": ["stall/x$|stall/y$"]})
    assert panels(other) == [{"x": [r"a\.b\-(?:stall/x$|stall/y$)"]}], "a logger's prefix stands before every tag"


def test_tags_and_expressions() -> None:
    assert clean_tag("stall/gradients/layers/net.0.weight_v-1") == "stall/gradients/layers/net.0.weight_v-1"
    assert clean_tag("/a b[0]:é<b>/") == "a_b_0____b_"
    assert clean_tag("") == clean_tag("/") == "_"
    assert layout({"t": ["a$"]}) == {"lightning_stall": {"t": ["Multiline", ["a$"]]}}
    with pytest.raises(ValueError, match=r"panel 't': 'a\(' is no regular expression"):
        write_layout([], {"t": ["a("]})


def test_a_logger_that_cannot_open_gets_no_panels_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the directory should be")
    with pytest.warns(StallWarning, match="TensorBoardLogger could not be given its panels"):
        write_layout([TensorBoardLogger(tmp_path / "taken")], {"t": ["a"]})
