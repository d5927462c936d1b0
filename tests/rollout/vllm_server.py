"""The real vLLM, where `make engines` has made its environment: a server for the time of a test."""

import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
needs_vllm = pytest.mark.skipif(
    not PYTHON.exists(), reason="needs .venv-vllm, which `make engines` makes"
)
OPTIONS = ("--logprobs-mode", "processed_logprobs", "--enable-lora", "--max-lora-rank", "16")
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def vllm(model, log, *options):
    """The address of a vLLM that serves the folder `model`; what it says goes to the file `log`."""
    port = free_port()
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "64"]
    command += ["--generation-config", "vllm", *(options or OPTIONS)]
    with open(log, "w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            env={**os.environ, **SETTINGS},
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, log)
        yield url
    finally:
        # its own group: the engine's processes, too
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def wait_for(url, process, log, seconds=400):
    """Return when it is healthy."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, Path(log).read_text()[-3000:]
        try:
            if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(1)
    raise AssertionError(f"vLLM was not healthy within {seconds} seconds")
