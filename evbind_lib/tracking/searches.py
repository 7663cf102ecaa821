"""A search as MLflow sees it: listeners that write Study > Trial > Fold while it runs, here and in worker processes.

Every run has one writer: a study's run the process that searches, a trial's run the process that trains it. Imports its
neighbours `runs` and `tracking`, `objectives` and `trials`; `notebook` imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from evbind_lib.config.compose import Params, TrackingParams
from evbind_lib.hpo.objective import SearchListener
from evbind_lib.hpo.objectives import best_trial
from evbind_lib.tracking.tracker import StudyRun, Tracker, open_tracker
from evbind_lib.training.result import Callback

# What a trial keeps of its own course that is worth a tag.
FACTS = ("reused_from", "retry_of", "enqueued", "micro_batch", "folds_from_before")


class TrackedTrials(SearchListener):
    """Writes the trials of this process below the study's run.

    Parameters
    ----------
    names : tuple of str
        Of the objectives.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.study_run: StudyRun | None = None
        self.trial_runs: dict[int, Any] = {}

    def open_study(self) -> StudyRun:
        """The run that trials go below."""
        assert self.study_run is not None
        return self.study_run

    def on_trial_start(self, trial: optuna.Trial, suggested: Mapping[str, Any]) -> Callback | None:
        """Open the Trial run; it follows the folds."""
        run = self.open_study().trial(trial.number, suggested)
        self.trial_runs[trial.number] = run
        if hasattr(run, "run_id"):
            # So that a view of the study can lead to the run.
            trial.set_user_attr("mlflow_run", {"experiment": run.experiment, "run": run.run_id})
        observer: Callback | None = run
        return observer

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Close the Trial run, where this process opened it."""
        run = self.trial_runs.pop(trial.number, None)
        if run is None:
            return
        attributes = trial.user_attrs
        state = {"COMPLETE": "COMPLETE", "PRUNED": "PRUNED"}.get(trial.state.name, "FAILED")
        values = dict(zip(self.names, trial.values or [], strict=False)) if state == "COMPLETE" else {}
        several = {f"objective of {name}": value for name, value in values.items()} if len(self.names) > 1 else {}
        run.finish(
            "KILLED" if attributes.get("interrupted") else state,
            value=next(iter(values.values()), None),
            metrics={**attributes.get("pooled", {}), **several},
            error=attributes.get("error"),
            seconds=attributes.get("seconds", 0.0),
            facts={f"evbind.{name}": attributes[name] for name in FACTS if name in attributes},
        )


class WorkerTrials(TrackedTrials):
    """Writes the trials of a worker process below the run that the search opened.

    Parameters
    ----------
    tracking : TrackingParams
    names : tuple of str
        Of the objectives.
    run_id, experiment : str
        Of the study's run.
    inherited : mapping of str to str
        Tags of everything below it.
    """

    def __init__(
        self,
        tracking: TrackingParams,
        names: tuple[str, ...],
        *,
        run_id: str,
        experiment: str,
        inherited: Mapping[str, str],
    ) -> None:
        super().__init__(names)
        self.tracking = tracking
        self.place = (run_id, experiment, dict(inherited))

    def open_study(self) -> StudyRun:
        """Open the store in this process, the first time; a store does not travel."""
        if self.study_run is None:
            tracker: Any = open_tracker(self.tracking)
            self.study_run = StudyRun(tracker, *self.place)
        return self.study_run


class TrackedSearch(TrackedTrials):
    """Writes a search to MLflow while it runs: Study > Trial > Fold.

    Parameters
    ----------
    tracker : Tracker
    params : Params
    tags : mapping of str to str
        Of the study's run.
    """

    def __init__(self, tracker: Tracker, params: Params, tags: Mapping[str, str]) -> None:
        super().__init__(tuple(params.hpo.metric.names))
        self.tracker = tracker
        self.params = params
        self.tags = tags
        self.best: int | None = None

    def on_study(self, study: optuna.Study, n_earlier_trials: int) -> None:
        """Open the Study run, or the one that the study has already."""
        self.study_run = self.tracker.study(
            study.study_name, study.user_attrs["uid"], parameters=self.params.flat(), tags=self.tags
        )
        self.study_run.close_stale()

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Close the Trial run and mark the best."""
        super().on_trial_end(study, trial)
        if trial.user_attrs.get("interrupted"):
            self.open_study().close_stale()  # of a worker that died
        best = best_trial(study, self.params) if trial.state.name == "COMPLETE" else None
        if best is not None and best.number != self.best:
            self.best = best.number
            self.open_study().mark_best(best.number)

    def for_workers(self) -> SearchListener | None:
        """What writes the trials in a worker."""
        run = self.study_run
        if run is None or not hasattr(run, "run_id"):
            return None
        return WorkerTrials(
            self.params.tracking,
            self.names,
            run_id=run.run_id,
            experiment=run.experiment,
            inherited=run.inherited,
        )
