"""Cores and memory that this process may use, read from made-up control groups of both versions."""

import os

import pytest

from laurel.core import machine

GIB = 1 << 30


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """A function that writes files of a system: {path: text}; it returns the folders to read."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    base = {
        "proc/meminfo": "MemTotal: 67108864 kB\nMemFree: 1 kB\nMemAvailable: 50331648 kB\n",
        "proc/self/cgroup": "0::/\n",
    }

    def made(files):
        for name, text in {**base, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path / "cgroup", tmp_path / "proc"

    return made


V1 = "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n0::/\n"
CORES = {
    "no limit": ({"cgroup/cpu.max": "max 100000\n"}, 16),
    "v2, in a container": ({"cgroup/cpu.max": "250000 100000\n"}, 2.5),
    "v2, a group above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "cgroup/a/cpu.max": "300000 100000\n",
            "cgroup/a/b/cpu.max": "max 100000\n",
        },
        3,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": V1,
            "cgroup/cpu/cpu.cfs_quota_us": "-1",
            "cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        16,
    ),
    "v1, in a container": (
        {
            "proc/self/cgroup": V1,
            "cgroup/cpu/cpu.cfs_quota_us": "400000",
            "cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        4,
    ),
    "v1, the host's path, both controllers' folder": (
        {
            "proc/self/cgroup": V1,
            "cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "50000",
            "cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
        },
        0.5,
    ),
    "another's limit": ({"proc/self/cgroup": "0::/a\n", "cgroup/b/cpu.max": "100000 100000\n"}, 16),
}


@pytest.mark.parametrize("case", CORES)
def test_cores_are_those_of_the_affinity_within_the_quota(case, linux):
    files, expected = CORES[case]
    assert machine.usable_cores(*linux(files)) == expected


def test_threads_by_rule(linux, monkeypatch):
    """OMP_NUM_THREADS where it is set, never more than the affinity or the quota gives, never
    none.
    """
    system = linux({"cgroup/cpu.max": "350000 100000\n"})
    assert machine.default_threads(*system) == 3
    for said, expected in {"2": 2, "1": 1, "8": 3, "2,4": 2, "": 3, "many": 3, "0": 3}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert machine.default_threads(*system) == expected, said
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 7})
    assert machine.default_threads(*system) == 2
    assert machine.default_threads(*linux({"cgroup/cpu.max": "50000 100000\n"})) == 1


def test_memory_is_the_machines_or_the_groups(linux):
    """Of a group the files it has read do not count as used: they make room when memory is asked
    for.
    """
    assert machine.memory_sizes(*linux({})) == (48 * GIB, 64 * GIB)
    limited = {
        "cgroup/memory.max": str(8 * GIB),
        "cgroup/memory.current": str(5 * GIB),
        "cgroup/memory.stat": f"anon 1\ninactive_file {GIB}\n",
    }
    assert machine.memory_sizes(*linux(limited)) == (4 * GIB, 8 * GIB)


def test_memory_of_the_first_version_of_control_groups(linux):
    v1 = {
        "proc/self/cgroup": V1,
        "cgroup/memory/memory.limit_in_bytes": str((1 << 63) - 4096),
        "cgroup/memory/memory.usage_in_bytes": "5",
    }
    assert machine.memory_sizes(*linux(v1)) == (48 * GIB, 64 * GIB)
    assert machine.memory_sizes(
        *linux({**v1, "cgroup/memory/memory.limit_in_bytes": str(2 * GIB)})
    ) == (
        2 * GIB - 5,
        2 * GIB,
    )


def test_a_system_that_does_not_tell(tmp_path):
    assert machine.memory_sizes(tmp_path, tmp_path) is None
    assert machine.cpu_quota(tmp_path, tmp_path) == float("inf")
    assert machine.usable_cores(tmp_path, tmp_path) >= 1
