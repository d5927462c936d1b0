"""The options of `laurel serve`."""

from __future__ import annotations

from typing import Literal

from laurel.core.options import Options, option


class ServeConfig(Options):
    """Everything `laurel serve` can be told."""

    host: str = option(
        "127.0.0.1",
        "the address to listen on; one that others can reach needs an API key",
        group="where",
    )
    port: int = option(8000, "the port; 0: a free one, which is printed", ge=0, lt=65_536)
    served_model_name: str | None = option(None, "its name for clients; default: MODEL as given")
    api_key: str | None = option(
        None,
        "clients must show it (Authorization: Bearer KEY); better in LAUREL_API_KEY, which no list"
        " of processes shows",
    )

    max_num_seqs: int = option(
        64, "completions drawn at once, of each name", ge=1, le=4096, group="how much"
    )
    max_model_len: int | None = option(
        None,
        "tokens of a prompt and its completion; default: the model's positions, at most 4096",
        ge=2,
    )
    max_queue: int = option(4096, "completions that may wait; beyond it requests get 429", ge=1)
    timeout: float = option(
        600.0, "seconds a request may take; on SIGTERM as long for those that run", gt=0
    )
    max_body: int = option(16 << 20, "bytes of a request at most", ge=1024)
    max_loras: int = option(8, "adapters served at once", ge=0)
    allow_folder: list[str] = option(
        [],
        "folders that clients may have weights and adapters loaded from; none: they may not",
    )

    choose: str | None = option(
        None,
        "a YAML file that says how one of several answers is chosen, for requests with `vote` or"
        " `best_of` and for the models NAME:vote-16, NAME:best-of-8; default: equal texts are one"
        " vote, and the best has the likeliest tokens",
        group="choosing",
    )

    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="model")
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "compute precision")
    num_threads: int = option(0, "CPU threads; 0: by rule", ge=0)
    chat_template: str | None = option(None, "a file with a Jinja chat template")
    seed: int = option(0, "of a starter model that is built first", ge=0)
