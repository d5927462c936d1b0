"""The saved choice: which prompt for this query, in microseconds.

A folder of JSON, arrays and text that runs nothing when it is read.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from laurel.core.errors import UsageError
from laurel.core.files import write_atomic
from laurel_prompts.features import Encoder, PrincipalDirections, encoder
from laurel_prompts.models import Model, restore_model

FORMAT = 1


@dataclass(frozen=True)
class Choice:
    """One query's prompt: name and text, its predicted reward, the default's, and the reason."""

    name: str
    prompt: str
    predicted: float
    default_predicted: float
    why: str


@dataclass
class Predictor:
    """r(q, p) and the choice p*(q) = argmax_p r(q, p) - cost_weight * cost(p).

    The choice is taken where it beats the default prompt by more than `margin`.

    The default is the training prompt of the highest rate_P - cost_weight * cost_P (the lower end
    of its mean reward's interval, its mean cost). margin: from cross-validation; infinite where no
    gain was credible. unseen: whether prompts that training did not see may be chosen, which is so
    only where leaving out each training prompt in turn showed a credible gain.
    """

    model: Model
    encode: Encoder
    query_directions: PrincipalDirections
    prompt_directions: PrincipalDirections
    names: tuple[str, ...]
    prompts: tuple[str, ...]
    rate_P: np.ndarray
    margin: float
    cost_P: np.ndarray | None
    unseen: bool
    _candidates: tuple[tuple[str, ...], np.ndarray, np.ndarray] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def features(self, queries: Sequence[str]) -> np.ndarray:
        """[S, D]: the slow part; keep it to score more candidates."""
        return self.query_directions(self.encode(queries))

    def scores(self, x_SD: np.ndarray, prompts: Mapping[str, str] | None = None) -> np.ndarray:
        """Predicted rewards [S, P] of candidates {name: text}, for queries by their `features`.

        None: the training prompts.
        """
        texts = self.prompts if prompts is None else tuple(prompts.values())
        known = self._candidates
        if (
            known is None or known[0] != texts
        ):  # the same candidates, query after query, are encoded once
            place = {text: p for p, text in enumerate(self.prompts)}
            which = np.array([place.get(text, -1) for text in texts])
            self._candidates = known = (texts, self.prompt_directions(self.encode(texts)), which)
        return self.model.predict(x_SD, *known[1:])

    def choose(
        self,
        queries: Sequence[str],
        prompts: Mapping[str, str] | None = None,
        *,
        cost_weight: float = 0.0,
        unseen: bool | None = None,
    ) -> list[Choice]:
        """A prompt for each query from candidates {name: text}.

        None: the training prompts; the default is always among them.

        cost_weight: reward that one unit of `cost` is worth. unseen: True lets prompts compete that
        training did not see.
        """
        if not (math.isfinite(cost_weight) and cost_weight >= 0):
            raise UsageError(
                f"{cost_weight} is no price.",
                where="cost_weight",
                fix="Give 0 or more, such as 0.0001 for a token.",
            )
        candidates, default = self._with_default(prompts, cost_weight)
        names, texts = list(candidates), list(candidates.values())
        score_SP = self.scores(self.features(queries), candidates)
        net_SP = score_SP - cost_weight * self._costs(texts) if cost_weight else score_SP.copy()
        if not (self.unseen if unseen is None else unseen):
            net_SP[:, [text not in self.prompts for text in texts]] = -np.inf
        chosen = choose_over_default(net_SP, default, self.margin).tolist()
        made = []
        for score_P, p, best in zip(score_SP, chosen, net_SP.argmax(1).tolist(), strict=True):
            why = "the default" if best == default else "not credibly better than the default"
            if p != default:
                why = "predicted better"
            predicted = float(score_P[p]), float(score_P[default])
            made.append(Choice(names[p], texts[p], *predicted, why))
        return made

    def _with_default(
        self, prompts: Mapping[str, str] | None, cost_weight: float
    ) -> tuple[dict[str, str], int]:
        """The candidates with the default prompt among them, and its place."""
        kept = self.default(cost_weight)
        name, text = self.names[kept], self.prompts[kept]
        if prompts is None:
            return dict(zip(self.names, self.prompts, strict=True)), self.prompts.index(text)
        candidates = dict(prompts)
        if text not in candidates.values():
            candidates[f"{name} (default)" if name in candidates else name] = text
        return candidates, list(candidates.values()).index(text)

    def default(self, cost_weight: float = 0.0) -> int:
        """The training prompt that is sent where no other is credibly better."""
        return int(
            np.argmax(
                self.rate_P - cost_weight * self._costs(self.prompts)
                if cost_weight
                else self.rate_P
            )
        )

    def reward(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        """A reward for `laurel.train`: r(q, p) of the prompt that a policy wrote for a query.

        The policy reads a query and writes a prompt, or a training prompt's name.

        What is no training prompt gets the chance of an unseen prompt if unseen prompts may be
        used, else 0: it may not be sent.
        """
        known = {text.strip(): text for text in self.prompts} | {
            name.strip(): text for name, text in zip(self.names, self.prompts, strict=True)
        }
        texts = [known.get(completion.strip(), completion.strip()) for completion in completions]
        table = self.scores(
            self.features(prompts), {text: text for text in dict.fromkeys([*self.prompts, *texts])}
        )
        place = {text: p for p, text in enumerate(dict.fromkeys([*self.prompts, *texts]))}
        return [
            float(table[s, place[text]]) if self.unseen or text in self.prompts else 0.0
            for s, text in enumerate(texts)
        ]

    def _costs(self, texts: Sequence[str]) -> np.ndarray:
        """What an answer to each prompt cost on average.

        Of a prompt that was not tried, the dearest.
        """
        missing = [
            name
            for name, cost in zip(
                self.names, [] if self.cost_P is None else self.cost_P, strict=False
            )
            if np.isnan(cost)
        ]
        if self.cost_P is None or missing:
            what = (
                f"the log has no cost for prompt `{missing[0]}`."
                if missing
                else "the log has no costs."
            )
            raise UsageError(
                what, where="cost_weight", fix="Log a column `cost`, or leave cost_weight out."
            )
        known = dict(zip(self.prompts, self.cost_P, strict=True))
        return np.array([known.get(text, self.cost_P.max()) for text in texts])

    def save(self, folder: str | Path, about: Mapping[str, Any]) -> Path:
        """Write the folder: predictor.json, arrays.npz.

        `about`: what is to be known of its making.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.model.state()
        arrays = {
            "rate_P": self.rate_P,
            **{
                f"model.{key}": value
                for key, value in state.items()
                if isinstance(value, np.ndarray)
            },
        }
        for part, directions in (
            ("query", self.query_directions),
            ("prompt", self.prompt_directions),
        ):
            arrays |= {f"{part}.{key}": value for key, value in directions.arrays.items()}
        if self.cost_P is not None:
            arrays["cost_P"] = self.cost_P
        np.savez(folder / "arrays.npz", allow_pickle=False, **arrays)
        saved = {
            "format": FORMAT,
            "encoder": self.encode.name,
            "names": self.names,
            "prompts": self.prompts,
            "margin": None if math.isinf(self.margin) else self.margin,
            "unseen": self.unseen,
            "model": type(self.model).__name__,
            "state": {
                key: value for key, value in state.items() if not isinstance(value, np.ndarray)
            },
            "about": dict(about),
        }
        write_atomic(folder / "predictor.json", json.dumps(saved, ensure_ascii=False, indent=1))
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Predictor:
        """Read what `save` wrote. UsageError that says what is missing."""
        folder = Path(folder).expanduser()
        try:
            saved = json.loads((folder / "predictor.json").read_text(encoding="utf-8"))
            with np.load(folder / "arrays.npz", allow_pickle=False) as file:
                arrays = dict(file)
            if saved["format"] != FORMAT:
                what = f"a predictor of format {saved['format']}; this laurel reads {FORMAT}."
                raise UsageError(what, where=str(folder), fix="Fit it again.")
            return cls._restored(saved, arrays)
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            zipfile.BadZipFile,
        ) as error:
            fix = "`laurel prompt fit LOG --output_dir FOLDER` makes one."
            raise UsageError(
                f"no saved predictor: {type(error).__name__} {error}.", where=str(folder), fix=fix
            ) from None

    @classmethod
    def _restored(cls, saved: dict[str, Any], arrays: dict[str, np.ndarray]) -> Predictor:
        """From the texts and the arrays that were saved; ValueError where they do not fit."""
        model_parts, query_parts, prompt_parts = (
            {
                key.removeprefix(f"{name}."): value
                for key, value in arrays.items()
                if key.startswith(f"{name}.")
            }
            for name in ("model", "query", "prompt")
        )
        names, prompts, rate_P = tuple(saved["names"]), tuple(saved["prompts"]), arrays["rate_P"]
        model = restore_model(saved["model"], {**saved["state"], **model_parts})
        counts = {len(names), len(prompts), len(rate_P), getattr(model, "seen", len(names))}
        if len(counts) > 1:
            raise ValueError(f"{len(names)} names, {len(prompts)} prompts, {len(rate_P)} rates")
        return cls(
            model=model,
            encode=encoder(saved["encoder"]),
            query_directions=PrincipalDirections(query_parts),
            prompt_directions=PrincipalDirections(prompt_parts),
            names=names,
            prompts=prompts,
            rate_P=rate_P,
            margin=math.inf if saved["margin"] is None else saved["margin"],
            cost_P=arrays.get("cost_P"),
            unseen=saved["unseen"],
        )


def choose_over_default(predicted_SP: np.ndarray, default: int, margin: float) -> np.ndarray:
    """The best prompt of each query where it beats the default by `margin`, else the default."""
    choice = predicted_SP.argmax(1)
    better = predicted_SP[np.arange(len(choice)), choice] - predicted_SP[:, default] > margin
    return np.where(better, choice, default)
