"""The cores and memory that this process may use, as affinity and containers limit them.

Read from Linux's files.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows its control groups: in v2 all in one tree, in v1 a tree for each controller."""
PROCESS = Path("/proc")


def group_folders(controller: str, groups: Path = GROUPS, process: Path = PROCESS) -> set[Path]:
    """The folders of this process's control groups and of all above them.

    Each may set a limit; the tightest holds. In a container the path is often the host's, and only
    the root of the tree is there: folders that do not exist hold no files.
    """
    try:
        lines = (process / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    found = {groups, groups / controller}
    for line in lines:
        _, names, path = f"{line}::".split(":", 2)
        path = path.removesuffix("::")
        roots = (groups / controller, groups / names) if names else (groups, groups / "unified")
        if not names or controller in names.split(","):
            for root in roots:
                here = root / path.lstrip("/")
                found.update(
                    folder for folder in (here, *here.parents) if folder.is_relative_to(root)
                )
    return found


def read_numbers(file: Path) -> list[int]:
    """The numbers in a file of a control group; none where there is no file, or no limit."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):  # "max", or a controller that is not mounted
        return []


def cpu_quota(groups: Path = GROUPS, process: Path = PROCESS) -> float:
    """Cores' worth of time that control groups allow; infinite without a limit."""
    found = [float("inf")]
    for folder in group_folders("cpu", groups, process):
        both = read_numbers(folder / "cpu.max")  # v2: quota and period
        both = both or read_numbers(folder / "cpu.cfs_quota_us") + read_numbers(
            folder / "cpu.cfs_period_us"
        )  # v1: quota -1 is none
        if len(both) == 2 and both[0] > 0 and both[1] > 0:
            found.append(both[0] / both[1])
    return min(found)


def usable_cores(groups: Path = GROUPS, process: Path = PROCESS) -> float:
    """Cores this process may run on: the affinity mask, cut by a container's quota of time."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(float(cores), cpu_quota(groups, process))


def cpu_name(*what: str, process: Path = PROCESS) -> str:
    """What the system reports of its first processor under these names, as a text to compare."""
    try:
        lines = (process / "cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    names = what or ("model name", "cpu family", "model", "stepping", "flags")
    return "\n".join(line for line in lines if line.partition(":")[0].strip() in names)


def default_threads(groups: Path = GROUPS, process: Path = PROCESS) -> int:
    """Threads for work that gains by them: OMP_NUM_THREADS, but at most the usable cores."""
    cores = max(1, int(usable_cores(groups, process)))
    first = (
        os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    )  # OpenMP takes a number for each level of nesting
    return min(int(first), cores) if first.isdigit() and int(first) > 0 else cores


def memory_sizes(groups: Path = GROUPS, process: Path = PROCESS) -> tuple[int, int] | None:
    """(free, all) bytes of memory that this process may have; None where it is not known."""
    try:
        lines = (line.split() for line in (process / "meminfo").read_text().splitlines())
        sizes = {line[0].rstrip(":"): int(line[1]) << 10 for line in lines if len(line) > 1}
        free, every = sizes["MemAvailable"], sizes["MemTotal"]
    except (OSError, ValueError, KeyError):
        return None
    for folder in group_folders("memory", groups, process):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most, now = read_numbers(folder / limit), read_numbers(folder / used)
            if most and now and most[0] < sizes["MemTotal"]:  # v1 says 2^63 where there is none
                free = min(free, max(0, most[0] - now[0] + reclaimable_bytes(folder)))
                every = min(every, most[0])
    return free, every


def reclaimable_bytes(folder: Path) -> int:
    """Bytes of files that a group's use counts in, and that make room when memory is asked for."""
    try:
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        sizes = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    except (OSError, ValueError):
        return 0
    return sizes.get("total_inactive_file", sizes.get("inactive_file", 0))
