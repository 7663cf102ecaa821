"""A sampler that tries every point of a grid once, conditional parameters included.

Optuna's own `GridSampler` takes the full product, so it repeats a parameter set for each value of a parameter that a
condition leaves out, and it gives a point to two workers that ask at once. Imports nothing of the library; `strategies`
builds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

_POINT = "evbind:grid_point"  # system attribute of a trial: digest of the grid, and number of the point in it


class GridSampler(optuna.samplers.BaseSampler):
    """Give each trial a point of the grid that no other trial has; where none is left, any.

    Parameters
    ----------
    points : sequence of dict of str to value
        No two alike.
    seed : int, optional
        Of the order, the same in all workers; without one the points are tried as they stand. A search that ends before
        the grid does has then seen one corner of it.
    """

    def __init__(self, points: Sequence[Mapping[str, Any]], *, seed: int | None = None) -> None:
        self.points = list(points)
        self.digest = hashlib.sha256(json.dumps(self.points).encode()).hexdigest()[:16]
        if seed is not None:
            np.random.default_rng(seed).shuffle(self.points)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Claim a point, unless the trial was enqueued with values of its own."""
        if "fixed_params" in trial.system_attrs:
            return
        others = study._storage.get_all_trials(study._study_id, deepcopy=False)
        left = self._left(others)
        # Trials get their numbers one by one, so of several that choose at the same moment each takes another place.
        choosing = sum(
            other.state == TrialState.RUNNING and other.number < trial.number and not self._has_values(other)
            for other in others
        )
        place = left[choosing] if choosing < len(left) else trial.number % len(self.points)
        study._storage.set_trial_system_attr(trial._trial_id, _POINT, [self.digest, place])

    def _has_values(self, trial: FrozenTrial) -> bool:
        return _POINT in trial.system_attrs or "fixed_params" in trial.system_attrs

    def _left(self, trials: Sequence[FrozenTrial]) -> list[int]:
        taken = set()
        for trial in trials:
            digest, place = trial.system_attrs.get(_POINT, (None, None))
            # One that was cut off before it drew anything gives its point back; with parameters it is retried by them.
            if digest == self.digest and (trial.params or not trial.state.is_finished()):
                taken.add(place)
        return [place for place in range(len(self.points)) if place not in taken]

    def is_exhausted(self, study: optuna.Study) -> bool:
        """Whether every point has been given to a trial.

        Parameters
        ----------
        study : optuna.Study

        Returns
        -------
        bool
        """
        return not self._left(study._storage.get_all_trials(study._study_id, deepcopy=False))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Empty: every parameter is asked for by itself."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Value of the trial's point; what an enqueued trial leaves open is taken from the grid by its number."""
        given = trial.system_attrs.get(_POINT)
        if given is not None and param_name in self.points[given[1]]:
            return self.points[given[1]][param_name]
        values = [point[param_name] for point in self.points if param_name in point]
        return values[trial.number % len(values)]
