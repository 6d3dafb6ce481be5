"""What the operating system says about a process and its cores: plain numbers, None where it does not tell."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows
    resource = None

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores this process may keep busy: its affinity, cut to the quota of its control group (containers have one)."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, min(cores, math.ceil(quota))) if quota is not None else cores


def cpu_quota(root: Path = _CGROUP, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores' worth of time the control groups of this process allow; None where nothing limits it.

    Args:
        root: where control groups are mounted, version 2 or 1.
        membership: lines `id:controllers:path` of this process.
    """
    quotas: list[float] = []
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        inside = base / path.strip("/")
        for folder in (inside, *inside.parents):
            quotas += _quota_of(folder)
            if folder == base:
                break
    return min(quotas, default=None)


def _quota_of(folder: Path) -> list[float]:
    limit, _, period = _read(folder / "cpu.max").partition(" ")
    if not limit:
        limit, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    try:
        return [float(limit) / float(period)] if float(limit) > 0 else []
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return []


@dataclass(frozen=True)
class CpuTime:
    """Seconds a thread or process has had so far."""

    running: float  # on a core
    queued: float  # ready to run, with no core free

    @property
    def ready(self) -> float:
        """Both: what it would have computed had it had a core to itself."""
        return self.running + self.queued


def cpu_time(pid: int | None = None) -> CpuTime | None:
    """Of the main thread of process `pid`, or of the calling thread."""
    where = "/proc/thread-self/schedstat" if pid is None else f"/proc/{pid}/schedstat"
    fields = _read(Path(where)).split()
    return CpuTime(int(fields[0]) / 1e9, int(fields[1]) / 1e9) if len(fields) >= 2 else None


def process_state(pid: int) -> str:
    """The state letter of a process with what it means, and what it waits in where the kernel says."""
    stat = _read(Path(f"/proc/{pid}/stat"))
    letter = stat.rpartition(")")[2].split()[:1]
    if not letter:
        return "state unknown"
    meaning = {"R": "running", "S": "sleeping", "D": "waiting for a disk", "Z": "dead", "T": "stopped"}
    waits_in = _read(Path(f"/proc/{pid}/wchan")).strip("\0\n ")
    inside = f" in {waits_in}" if waits_in not in ("", "0") else ""
    return f"state {letter[0]} ({meaning.get(letter[0], 'other')}{inside})"


def memory_left() -> tuple[float, float] | None:
    """Bytes of the machine's memory: available, and in all."""
    found = _table(Path("/proc/meminfo"))
    return (found["MemAvailable"], found["MemTotal"]) if {"MemAvailable", "MemTotal"} <= found.keys() else None


def private_memory(pid: int) -> float:
    """Bytes that process `pid` alone holds, and that would be free without it; 0 where unknown."""
    return _table(Path(f"/proc/{pid}/smaps_rollup")).get("Pss_Anon", 0.0)


def _table(path: Path) -> dict[str, float]:
    """Lines of `name: number kB`, in bytes."""
    out: dict[str, float] = {}
    for line in _read(path).splitlines():
        name, _, rest = line.partition(":")
        if rest.strip().endswith("kB"):
            out[name] = float(rest.split()[0]) * 1024
    return out


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def thread_pauses() -> float:
    """How often this thread gave its core away of its own will, to sleep or to wait; infinite where it is not told."""
    if resource is None or not hasattr(resource, "RUSAGE_THREAD"):
        return math.inf
    return float(resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw)
