"""Where findings go. A sink is any callable that takes a `Finding`; each file here holds one kind."""

from lightning_stall.sinks.console import ConsoleSink, StallWarning
from lightning_stall.sinks.heatmap import heatmap
from lightning_stall.sinks.jsonl import JsonlSink
from lightning_stall.sinks.loggers import LoggerSink
from lightning_stall.sinks.tensorboard import clean_tag, layout, write_layout
from lightning_stall.sinks.themes import in_order

__all__ = [
    "ConsoleSink",
    "JsonlSink",
    "LoggerSink",
    "StallWarning",
    "clean_tag",
    "heatmap",
    "in_order",
    "layout",
    "write_layout",
]
