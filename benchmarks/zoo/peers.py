"""Other tools on the zoo, beside this package: `python -m benchmarks.zoo.peers [--part seen] [--tools A,B] ...`.

Each tool is attached as its own documentation says, with its own defaults, one at a time. What it does is read as one
of: silent, warned (with its words), stopped (the run ended early), killed (the fit raised where the bare one did not).
Tools that are not installed are left out by name; nothing is installed here.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.spike import SpikeDetection

from benchmarks.zoo.__main__ import arguments, chosen, grid, wide
from benchmarks.zoo.case import Case
from benchmarks.zoo.figures import near_twin, worth
from benchmarks.zoo.run import Result, run
from benchmarks.zoo.verdict import plain
from benchmarks.zoo.words import codes_meant


@dataclass
class Watch:
    """A tool at work on one run. `read()` after the fit gives (loud words, words it marks as minor).

    Minor words count where they are right and never as an alarm: both in the tool's favour.
    """

    callbacks: list[Callback]
    read: Callable[[], tuple[list[str], list[str]]]
    meant: Callable[[str], set[str]] = codes_meant
    stops: Callable[[], bool] = field(default=lambda: False)


@dataclass
class Reaction:
    """What a tool did about one run. `codes` are all that its words may mean."""

    tool: str
    name: str
    seed: int
    expected: list[str]
    kind: str  # "silent", "warned", "stopped" or "killed"
    texts: list[str]
    codes: list[str]
    score: float | None
    bare: float | None

    @property
    def right(self) -> bool:
        return any(code in self.expected for code in self.codes)

    @property
    def harmed(self) -> bool:
        """The fit was killed, or a well run ended with a score 10 % below its own."""
        return self.kind == "killed" or (
            not self.expected and worth(self.bare) > float("-inf") and not near_twin(self.score, self.bare)
        )


def ours(folder: str) -> Watch:
    from lightning_stall import stall_callbacks

    callbacks: Any = stall_callbacks()
    report = callbacks[-1]
    report.table = report.html = False

    def read() -> tuple[list[str], list[str]]:
        told = [f.code for f in report.findings if f.severity != "info"]
        return list(dict.fromkeys([c.code for c in report.causes] + told)), []

    return Watch(callbacks, read, meant=lambda text: {text})


class _Early(EarlyStopping):
    """Watches the validation loss, or else the training loss, under whatever name the module logs it."""

    def __init__(self) -> None:
        super().__init__(monitor="", strict=False)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._choose(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._choose(trainer)
        super().on_validation_end(trainer, pl_module)

    def _choose(self, trainer: Any) -> None:
        losses = [name for name in trainer.callback_metrics if re.search("loss|mse|mae|nll|bce|mape", name)]
        self.monitor = self.monitor or next((n for n in losses if "val" in n), losses[0] if losses else "")


def early_stopping(folder: str) -> Watch:
    early = _Early()

    def why() -> list[str]:
        return [early.stopping_reason_message] if early.stopping_reason_message else []

    return Watch([early], lambda: (why(), []), stops=lambda: bool(why()))


def spike_detection(folder: str) -> Watch:
    return Watch([SpikeDetection()], lambda: ([], []))  # its only word is the exception


class _Losses(Callback):
    """Hands a tool without a Lightning callback of its own what its documentation asks for at each step."""

    def __init__(self, start: Callable[[Any, Any], Any], step: Callable[[Any, Any, Any], None]) -> None:
        self.tool: Any = None
        self.start, self.step = start, step
        self.loss = float("nan")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.tool = self.start(pl_module, trainer.optimizers[0] if trainer.optimizers else None)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self.loss = float(loss.detach())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.step(self.tool, self.loss, trainer)


def gradsnitch(folder: str) -> Watch:
    """By `watch(model, optimizer)`: it sees more so than by its Lightning callback, which needs logged losses."""
    import gradsnitch as tool

    def step(monitor: Any, loss: float, trainer: Any) -> None:
        val = [float(v) for name, v in trainer.callback_metrics.items() if "val" in name and "loss" in name]
        monitor.log(trainer.global_step, loss, val_loss=val[0] if val else None)

    losses = _Losses(tool.watch, step)

    def read() -> tuple[list[str], list[str]]:
        found = tool.lint(losses.tool.df()) if losses.tool and losses.tool.rows else []
        return [f"{f.name}: {f.likely_cause}" for f in found], []

    return Watch([losses], read)


class _Ends(Callback):
    """Calls `end` when the fit is over, however it ends."""

    def __init__(self, end: Callable[[], Any]) -> None:
        self.end = end

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.end()


def torchmortem(folder: str) -> Watch:
    from torchmortem import Autopsy

    def start(model: Any, optimizer: Any) -> Any:
        autopsy = Autopsy(model, optimizer=optimizer)
        autopsy.attach()
        return autopsy

    losses = _Losses(start, lambda autopsy, loss, trainer: autopsy.step(loss=loss))

    def read() -> tuple[list[str], list[str]]:
        report = losses.tool.get_report() if losses.tool else None
        loud: list[str] = [insight.title for insight in report.insights] if report else []
        minor: list[str] = []
        for finding in report.findings if report else ():
            (minor if finding.severity.name == "INFO" else loud).append(f"{finding.title}: {finding.summary}")
        return loud, minor

    return Watch([losses, _Ends(lambda: losses.tool and losses.tool.detach())], read)


def pytscope(folder: str) -> Watch:
    """Its own analysis of what it recorded, but for the page: drawing that raises where a loss is NaN."""
    from pytscope.analyzers.convergence import analyze_convergence
    from pytscope.analyzers.efficiency import analyze_efficiency
    from pytscope.analyzers.memory import analyze_memory
    from pytscope.analyzers.timing import analyze_timing
    from pytscope.core.store import RunStore
    from pytscope.diagnosis.engine import DiagnosisContext, run_diagnosis
    from pytscope.integrations.lightning import PytscopeCallback

    run_dir = str(Path(folder, "pytscope"))

    def read() -> tuple[list[str], list[str]]:
        steps = RunStore.load(run_dir).steps
        parts = {"memory": analyze_memory, "convergence": analyze_convergence, "efficiency": analyze_efficiency}
        seen = {name: analyse(steps) for name, analyse in parts.items()} if steps else {}
        found = run_diagnosis(DiagnosisContext(timing=analyze_timing(steps), steps=steps, **seen)) if steps else []
        texts = [(f.severity, f"{f.title}: {f.detail}") for f in found]
        return [t for level, t in texts if level != "low"], [t for level, t in texts if level == "low"]

    return Watch([PytscopeCallback(run_dir)], read)


def arc_training(folder: str) -> Watch:
    from arc.api.integrations import LightningCallback

    tool = LightningCallback(verbose=False)

    def read() -> tuple[list[str], list[str]]:
        log = tool.controller.intervention_log if tool.controller else []
        return list(dict.fromkeys(f"{entry['action']}: {entry['reason']}" for entry in log)), []

    return Watch([tool], read)


# by name: how to attach it, and the module that has to be installed
TOOLS: dict[str, tuple[Callable[[str], Watch], str]] = {
    "lightning-stall": (ours, "lightning_stall"),
    "EarlyStopping": (early_stopping, "lightning"),
    "SpikeDetection": (spike_detection, "lightning"),
    "gradsnitch": (gradsnitch, "gradsnitch"),
    "pytscope": (pytscope, "pytscope"),
    "arc-training": (arc_training, "arc"),
    "torchmortem": (torchmortem, "torchmortem"),
}


def react(tool: str, case: Case, seed: int, bare: Result) -> Reaction:
    """Fit the case with one tool attached."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            watch = TOOLS[tool][0](folder)
            result = run(case, seed, watch.callbacks)
            loud, minor = watch.read()
    killed = result.error is not None and bare.error is None
    if killed:
        loud.append(str(result.error).strip().splitlines()[-1])
    kind = "killed" if killed else "stopped" if watch.stops() else "warned" if loud else "silent"
    codes = sorted(set().union(*(watch.meant(text) for text in loud + minor)))
    return Reaction(tool, case.name, seed, list(case.causes), kind, loud + minor, codes, result.score, bare.score)


SHARES = ("it reacts", "a right word", "alarms on well")  # of the figures below, those shown in percent


def figures(reactions: Sequence[Reaction]) -> dict[str, Any]:
    """One tool's line of the table. Shares are of its sick or its well runs."""
    sick, well = [r for r in reactions if r.expected], [r for r in reactions if not r.expected]
    return {
        "sick runs": len(sick),
        "it reacts": sum(r.kind != "silent" for r in sick) / max(len(sick), 1),
        "a right word": sum(r.right for r in sick) / max(len(sick), 1),
        "codes its words may mean": sum(len(r.codes) for r in sick) / max(len(sick), 1),
        "well runs": len(well),
        "alarms on well": sum(r.kind != "silent" for r in well) / max(len(well), 1),
        "well runs harmed": sum(r.harmed for r in well),
        "sick runs killed": sum(r.harmed for r in sick),
    }


def main() -> None:
    parser = arguments()
    parser.description, parser.prog = __doc__, "python -m benchmarks.zoo.peers"
    parser.set_defaults(part="seen")
    parser.add_argument("--tools", default=",".join(TOOLS), help="comma separated; default: %(default)s")
    parser.add_argument("--every", type=int, default=1, help="only each N-th of the cases")
    options = parser.parse_args()
    names = options.tools.split(",")
    if unknown := [name for name in names if name not in TOOLS]:
        parser.error(f"--tools got {', '.join(unknown)}; there are {', '.join(TOOLS)}")
    missing = [name for name in names if find_spec(TOOLS[name][1]) is None]
    reactions: list[Reaction] = []
    for case in chosen(options)[:: options.every]:
        for seed in map(int, options.seeds.split(",")):
            bare = run(case, seed)
            last = [react(name, case, seed, bare) for name in names if name not in missing]
            reactions += last
            print(f"{case.name} #{seed}: " + ", ".join(f"{r.tool} {r.kind}" for r in last), flush=True)
            if options.json:
                options.json.write_text(json.dumps([plain(asdict(r)) for r in reactions], indent=1, allow_nan=False))
    table = grid("other tools on the zoo", ("tool",), tuple(figures([])))
    for name in names:
        mine = figures([r for r in reactions if r.tool == name])
        cells = [
            f"{v:.0%}" if key in SHARES else f"{v:.1f}" if isinstance(v, float) else str(v) for key, v in mine.items()
        ]
        table.add_row(name, *(["not installed"] if name in missing else cells))
    wide().print(table)


if __name__ == "__main__":
    main()
