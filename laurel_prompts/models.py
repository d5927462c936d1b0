"""Reward models: the chance that prompt p answers query q right.

By a logistic model with interactions or by trees.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from laurel.core.errors import UsageError


class Model(Protocol):
    """r(q, p).

    `x_SD`: queries; `e_PE`: prompts; `which_P`: each prompt's place among the training prompts, -1
    of an unseen one.
    """

    def fit(self, x_SD: np.ndarray, e_PE: np.ndarray, reward_SP: np.ndarray) -> Model:
        """Learn from the cells that are not nan."""
        ...

    def predict(self, x_SD: np.ndarray, e_PE: np.ndarray, which_P: np.ndarray) -> np.ndarray:
        """[S, P] chances."""
        ...

    def state(self) -> dict[str, Any]:
        """Arrays and texts from which `restore_model` makes it again."""
        ...


@dataclass
class Rates:
    """Each prompt's mean reward, whatever the query; of an unseen prompt the mean of these.

    The baseline that a choice must beat.
    """

    rate_P: np.ndarray | None = None

    def fit(self, x_SD: np.ndarray, e_PE: np.ndarray, reward_SP: np.ndarray) -> Rates:
        count = (~np.isnan(reward_SP)).sum(0)
        return Rates((np.nansum(reward_SP, 0) + 0.5) / (count + 1))

    def predict(self, x_SD: np.ndarray, e_PE: np.ndarray, which_P: np.ndarray) -> np.ndarray:
        assert self.rate_P is not None
        return np.broadcast_to(
            np.append(self.rate_P, self.rate_P.mean())[which_P], (len(x_SD), len(which_P))
        ).copy()

    def state(self) -> dict[str, Any]:
        return {"rate_P": self.rate_P}


def _unpack_parameters(
    vector: np.ndarray, D: int, F: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A [D, F], w [D], b [F] and c of the vector that the optimiser moves, in this order."""
    return (
        vector[: D * F].reshape(D, F),
        vector[D * F : -F - 1],
        vector[-F - 1 : -1],
        float(vector[-1]),
    )


def _cross_entropy(
    vector: np.ndarray,
    x_SD: np.ndarray,
    f_PF: np.ndarray,
    known_SP: np.ndarray,
    target_SP: np.ndarray,
    penalty: np.ndarray,
) -> tuple[float, np.ndarray]:
    """The penalised mean cross-entropy of `Logistic` over the known cells, and its gradient."""
    a_DF, w_D, b_F, c = _unpack_parameters(vector, x_SD.shape[1], f_PF.shape[1])
    count = max(1, int(known_SP.sum()))
    z_SP = x_SD @ (a_DF @ f_PF.T + w_D[:, None]) + f_PF @ b_F + c
    gap_SP = np.where(known_SP, expit(z_SP) - target_SP, 0.0) / count
    loss_SP = np.where(known_SP, np.logaddexp(0, z_SP) - target_SP * z_SP, 0.0)
    back_DP = x_SD.T @ gap_SP
    slope = np.concatenate(
        [(back_DP @ f_PF).ravel(), back_DP.sum(1), gap_SP.sum(0) @ f_PF, [gap_SP.sum()]]
    )
    value = loss_SP.sum() / count + 0.5 * float(penalty @ vector**2)
    return value, slope + penalty * vector


@dataclass
class Logistic:
    """A logistic model with interactions of query and prompt.

        logit r(q, p) = c + w.x_q + b.f_p + x_q' A f_p

    f_p says which training prompt p is ("heads") or is its features ("features").

    Cross-entropy plus (own |A|^2 + shared |w|^2 + |b|^2 / 10) / 2n over n logged cells. Difficulty,
    which all prompts share, and what one prompt is better at are held back apart: only A can make
    the best prompt depend on the query. Of an unseen prompt "heads" know nothing but the
    difficulty. Needs no library; a fit takes about a second.
    """

    kind: str = "heads"
    own: float = 1000.0
    shared: float = 30.0
    a_DF: np.ndarray | None = None
    w_D: np.ndarray | None = None
    b_F: np.ndarray | None = None
    c: float = 0.0
    seen: int = 0

    def fit(self, x_SD: np.ndarray, e_PE: np.ndarray, reward_SP: np.ndarray) -> Logistic:
        known_SP = ~np.isnan(reward_SP)
        count, prompts = max(1, int(known_SP.sum())), len(e_PE)
        target_SP = np.where(known_SP, reward_SP, 0.0)
        f_PF = self._prompts(e_PE, np.arange(prompts), prompts)
        D, F = x_SD.shape[1], f_PF.shape[1]
        strength = [np.full(D * F, self.own), np.full(D, self.shared), np.full(F, 0.1), [0.0]]
        penalty = np.concatenate(strength) / count
        start = np.zeros(D * F + D + F + 1)
        start[-1] = logit(np.clip(target_SP.sum() / count, 1e-3, 1 - 1e-3))
        found = minimize(
            _cross_entropy,
            start,
            args=(x_SD, f_PF, known_SP, target_SP, penalty),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 300, "ftol": 1e-9},
        ).x
        a_DF, w_D, b_F, c = _unpack_parameters(found, D, F)
        return Logistic(self.kind, self.own, self.shared, a_DF, w_D, b_F, c, prompts)

    def predict(self, x_SD: np.ndarray, e_PE: np.ndarray, which_P: np.ndarray) -> np.ndarray:
        assert self.a_DF is not None and self.w_D is not None and self.b_F is not None
        f_PF = self._prompts(e_PE, which_P, self.seen)
        return expit(x_SD @ (self.a_DF @ f_PF.T + self.w_D[:, None]) + f_PF @ self.b_F + self.c)

    def state(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "a_DF": self.a_DF,
            "w_D": self.w_D,
            "b_F": self.b_F,
            "c": self.c,
            "seen": self.seen,
        }

    def _prompts(self, e_PE: np.ndarray, which_P: np.ndarray, seen: int) -> np.ndarray:
        return (
            e_PE if self.kind == "features" else np.eye(seen + 1)[which_P, :seen]
        )  # the last row, of -1, is all zeros


@dataclass
class Trees:
    """Gradient-boosted trees (LightGBM) on the features of query and prompt; cross-entropy.

    Which training prompt it is, is a feature too.
    """

    leaves: int = 15
    rounds: int = 80
    text: str = ""

    def fit(self, x_SD: np.ndarray, e_PE: np.ndarray, reward_SP: np.ndarray) -> Trees:
        return Trees(self.leaves, self.rounds, self._train(x_SD, e_PE, reward_SP).model_to_string())

    def staged(
        self, x_SD: np.ndarray, e_PE: np.ndarray, reward_SP: np.ndarray, stages: Sequence[int]
    ) -> list[Trees]:
        """One fit, cut after so many rounds each: what a search over rounds costs is one fit."""
        booster = self._train(x_SD, e_PE, reward_SP)
        return [
            Trees(self.leaves, stage, booster.model_to_string(num_iteration=stage))
            for stage in stages
        ]

    def _train(self, x_SD: np.ndarray, e_PE: np.ndarray, reward_SP: np.ndarray) -> Any:
        lightgbm = _lightgbm()
        known = ~np.isnan(reward_SP)
        rows = _query_prompt_features(x_SD, e_PE, np.arange(len(e_PE)))[known.ravel()]
        data = lightgbm.Dataset(
            rows, reward_SP[known], categorical_feature=[rows.shape[1] - 1], free_raw_data=True
        )
        settings = {
            "objective": "cross_entropy",
            "num_leaves": self.leaves,
            "learning_rate": 0.1,
            "min_data_in_leaf": 40,
            "feature_fraction": 0.5,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "lambda_l2": 5.0,
            "seed": 0,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }
        return lightgbm.train(settings, data, num_boost_round=self.rounds)

    def predict(self, x_SD: np.ndarray, e_PE: np.ndarray, which_P: np.ndarray) -> np.ndarray:
        if not hasattr(self, "_booster"):
            self._booster = _lightgbm().Booster(model_str=self.text)
        return self._booster.predict(_query_prompt_features(x_SD, e_PE, which_P)).reshape(
            len(x_SD), len(e_PE)
        )

    def state(self) -> dict[str, Any]:
        return {"text": self.text}


def restore_model(kind: str, state: dict[str, Any]) -> Model:
    """The model that `state` describes."""
    return {"Rates": Rates, "Logistic": Logistic, "Trees": Trees}[kind](**state)


def candidate_models() -> list[Model]:
    """The models that cross-validation chooses from.

    Rates, logistic models held back more and less, and trees where LightGBM is installed.
    """
    made: list[Model] = [Rates()]
    made += [
        Logistic(kind, own) for kind in ("heads", "features") for own in (100.0, 1000.0, 10_000.0)
    ]
    return [*made, *(Trees(leaves) for leaves in (7, 31) if has_trees())]


def has_trees() -> bool:
    """Is LightGBM installed, and does it load?"""
    try:
        importlib.import_module("lightgbm")
    except (ImportError, OSError):  # OSError: a machine without libgomp
        return False
    return True


def _lightgbm() -> Any:
    if not has_trees():
        raise UsageError(
            "`lightgbm` is not installed.", where="trees", fix="pip install 'laurel-rl[prompt]'"
        )
    import lightgbm

    return lightgbm


def _query_prompt_features(x_SD: np.ndarray, e_PE: np.ndarray, which_P: np.ndarray) -> np.ndarray:
    """[S * P, D + E + 1]: every query beside every prompt, and which training prompt it is (nan:
    unseen).
    """
    s, p = len(x_SD), len(e_PE)
    which = np.where(which_P < 0, np.nan, which_P.astype(float))
    return np.hstack([np.repeat(x_SD, p, 0), np.tile(e_PE, (s, 1)), np.tile(which, s)[:, None]])
