"""Studies in Optuna's storage: what a trial and a study record, open or resume one, count its trials, find the best."""

import contextlib
import os
import threading
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import optuna
import sqlalchemy
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.trial import FrozenTrial, TrialState

from evbind_lib.config.compose import DEFAULT_STUDY, default_study_name
from evbind_lib.config.digest import code_digest
from evbind_lib.config.masking import MASK, masked
from evbind_lib.config.paths import DISK_ERRORS, resolve_sqlite, sqlite_file, workspace
from evbind_lib.config.processes import lock_between_processes
from evbind_lib.config.schema import Params, dotted_name, flatten, set_values
from evbind_lib.errors import EvbindError, SearchError, TrackingError, did_you_mean
from evbind_lib.training.cache import FoldCache

FORMAT = 2  # of what trials and studies record; those made before it say none
# Seconds. A worker of another host without a heartbeat for this long is taken for dead; a process of this host is looked for.
HEARTBEAT, GRACE = 30, 150
OBJECTIVE = "evbind_lib.Objective"  # in the identity of a study
CODE = ("data", "training")  # packages whose code decides what is trained
_uid_lock = threading.Lock()


@dataclass
class _Record:
    """User attributes of a trial or a study, each field one attribute of that name; None where there is none."""

    @classmethod
    def read(cls, owner: Any) -> Self:
        return cls(**{name: value for name, value in owner.user_attrs.items() if name in cls.__dataclass_fields__})

    def values(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def write(self, owner: Any) -> None:
        """Write the fields that are set; other attributes stay as they are."""
        for name, value in self.values().items():
            owner.set_user_attr(name, value)


@dataclass
class TrialRecord(_Record):
    """What a trial records beside Optuna's own fields; no text of a post."""

    format: int | None = None
    worker: str | None = None  # the process at work on it
    interrupted: bool | None = None  # cut off, and done again
    surplus: bool | None = None  # one too many: it does not count
    error: str | None = None
    traceback: list[str] | None = None
    seconds: float | None = None
    metric: str | None = None
    fold_aggregation: str | None = None
    fold_scores: list[float] | None = None
    fold_seconds: list[float] | None = None
    micro_batch: int | None = None
    pooled: dict[str, float] | None = None
    resolved: dict[str, Any] | None = None
    code: str | None = None  # digest of the code of data/ and training/ that its folds were trained by
    parameter_key: str | None = None
    folds_from_before: int | None = None
    reused_from: int | None = None
    retry_of: int | None = None
    deaths: int | None = None
    enqueued: str | None = None
    mlflow_run: dict[str, str] | None = None


@dataclass
class StudyRecord(_Record):
    """What a study records: its own number, what it is of, and the digest of each fold's validation pairs."""

    format: int | None = None
    uid: str | None = None
    pruner: dict[str, Any] | None = None
    search_space: dict[str, Any] | None = None  # of studies made before the rebuild
    pairs: dict[str, str] | None = None
    identity: dict[str, Any] | None = None
    ended: str | None = None  # how the last search ended: FINISHED, or its error; empty while one goes on
    mlflow: str | None = None  # address of its run, for readers of optuna-dashboard
    n_finalists: int | None = None
    finalists: dict[str, Any] | None = None  # by number of trial: values with fresh seeds, when they ended, code


def study_uid(study: optuna.Study) -> str:
    """Number of this very study, given to it where it has none; one made again under its name has another."""
    with _uid_lock:  # threads of a plain study's n_jobs
        if StudyRecord.read(study).uid is None:
            StudyRecord(uid=uuid.uuid4().hex).write(study)
        return str(StudyRecord.read(study).uid)


def fold_cache(study: optuna.Study, *, read_all: bool = False) -> FoldCache:
    """The finished folds of a study."""
    return FoldCache(study_uid(study), read_all=read_all, origin=f"study {study.study_name}")


def is_finished(trial: FrozenTrial) -> bool:
    """Whether a trial ended by itself: was neither cut off nor one too many."""
    attributes = trial.user_attrs  # asked for all trials, several times in each
    return trial.state.is_finished() and not attributes.get("interrupted") and not attributes.get("surplus")


def own_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials of a study but for those that another program ran or added to one of evbind's, of which nothing is known."""
    trials = study.get_trials(deepcopy=False)
    if StudyRecord.read(study).identity is None:
        return trials
    known = TrialRecord.__dataclass_fields__.keys()
    return [trial for trial in trials if trial.state == TrialState.WAITING or known & trial.user_attrs.keys()]


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ended by themselves: complete, pruned or failed."""
    return [trial for trial in own_trials(study) if is_finished(trial)]


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials that count, by number."""
    return [trial for trial in finished_trials(study) if trial.state == TrialState.COMPLETE]


def count_trials(study: optuna.Study) -> dict[str, int]:
    """Number of finished trials: ``total``, ``complete``, ``pruned`` and ``failed``."""
    states = [trial.state for trial in finished_trials(study)]
    named = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    return {"total": len(states), **{name: states.count(state) for name, state in named.items()}}


def states(counts: Mapping[str, int]) -> str:
    """How the trials of a study ended, from `count_trials`."""
    return f"{counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed"


def trials_by_code(study: optuna.Study) -> dict[str, list[int]]:
    """Numbers of the finished trials by the code that trained them; those of studies that did not record it are left out."""
    codes: dict[str, list[int]] = {}
    for trial in finished_trials(study):
        if code := TrialRecord.read(trial).code:
            codes.setdefault(code, []).append(trial.number)
    return codes


def is_minimised(study: optuna.Study) -> bool:
    """Whether lower values are better; of several objectives the first counts."""
    return bool(study.directions[0] == optuna.study.StudyDirection.MINIMIZE)


def metric_name(study: optuna.Study) -> str:
    """What the values of the study are, for axes and tables."""
    return (study.metric_names or ["objective value"])[0]


def ranked_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials that count, the best first, the earliest of equals."""
    return sorted(complete_trials(study), key=lambda trial: trial.values[0], reverse=not is_minimised(study))


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial with the best value, the earliest of equals; None where none is complete."""
    return next(iter(ranked_trials(study)), None)


def distinct_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The first trial of each set of parameters."""
    found: dict[str | int, FrozenTrial] = {}
    for trial in trials:
        found.setdefault(TrialRecord.read(trial).parameter_key or trial.number, trial)
    return list(found.values())


def improvements(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials that were better than all that had ended before them, in that order."""
    sign, found = 1 if is_minimised(study) else -1, list[FrozenTrial]()
    for trial in sorted(complete_trials(study), key=lambda trial: trial.datetime_complete):
        if not found or sign * trial.values[0] < sign * found[-1].values[0]:
            found.append(trial)
    return found


def trials_since_improvement(study: optuna.Study) -> int:
    """Number of finished trials after the last one that was better than all before it, in the order of their ends."""
    finished, better = finished_trials(study), improvements(study)
    return sum(not better or trial.datetime_complete > better[-1].datetime_complete for trial in finished)


def should_stop(study: optuna.Study, params: Params) -> str | None:
    """Why the search should begin no further trial, as a sentence; None to go on."""
    most = params.hpo.stop.no_improvement
    if most is None or (since := trials_since_improvement(study)) < most:
        return None
    return f"No trial was better for {since} in a row (hpo.stop.no_improvement={most})."


def code_version() -> str:
    """Digest of the code that trains, as trials record it."""
    return code_digest(*CODE)[:12]


def open_study(params: Params, identity: Mapping[str, Any], study: str | optuna.Study | None = None) -> optuna.Study:
    """Make the study of that name, or load it to go on with it; one that is given is used as it is."""
    if isinstance(study, optuna.Study):
        _check_identity(study, identity)
        return study
    settings = params.hpo.study
    name, storage = study or settings.study_name, open_storage(settings.storage)
    with lock_between_processes(settings.storage):
        default = default_study_name(params.data.model_dump(), params.model.model_dump())
        if not study and name == default != DEFAULT_STUDY:
            name = _name_of_default(storage, name, params, identity)
        try:
            opened = optuna.create_study(storage=storage, study_name=name, direction=settings.direction)
            StudyRecord(format=FORMAT, pruner=params.hpo.pruner.model_dump()).write(opened)
        except DuplicatedStudyError:
            if not settings.load_if_exists:
                raise refusal(name, "exists, and hpo.study.load_if_exists is false") from None
            opened = optuna.load_study(study_name=name, storage=storage)
            if StudyRecord.read(opened).identity is None and finished_trials(opened):
                raise refusal(name, "holds trials of a script, and nothing says what they were measured on") from None
        _check_identity(opened, identity)
    return opened


def load_study(params: Params) -> optuna.Study:
    """Load the study that ``hpo.study`` names; `SearchError` where there is none."""
    name, address = params.hpo.study.study_name, params.hpo.study.storage
    storage = existing_storage(address)
    if name not in (names := optuna.get_all_study_names(storage) if storage else []):
        place, near = masked(address), did_you_mean(name, names)
        raise SearchError(f"hpo.study.study_name={name}: {place} has no study of that name{near}")
    return optuna.load_study(study_name=name, storage=storage)


def _name_of_default(storage: Any, name: str, params: Params, identity: Mapping[str, Any]) -> str:
    """Name of a study that nobody named: that of before such studies were called after data and model, where it is the same."""
    if identity.get("source") == "memory":
        name = name.replace("sample-", "memory-", 1)
    names = optuna.get_all_study_names(storage)
    if name in names or DEFAULT_STUDY not in names or not params.hpo.study.load_if_exists:
        return name
    former = optuna.load_study(study_name=DEFAULT_STUDY, storage=storage)
    is_another = StudyRecord.read(former).identity is None or _differences(former, identity)[0]
    return name if is_another else DEFAULT_STUDY


def refusal(name: str, reason: str) -> SearchError:
    """What to raise where a study cannot be gone on with."""
    remedy = 'choose another with hpo.study.study_name=NAME or search(..., study="NAME")'
    return SearchError(f"Study {name} {reason}; {remedy}.")


def _check_identity(study: optuna.Study, identity: Mapping[str, Any]) -> None:
    """Write what a study is made with into one that does not say it; refuse one that was made with something else."""
    known = StudyRecord.read(study).identity
    if known is None:
        study_uid(study)
        if identity["objective"] == OBJECTIVE and identity["score"] is None:
            with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                study.set_metric_names([identity["metric"]])
        StudyRecord(identity=dict(identity)).write(study)
        return
    different, searched = _differences(study, identity)
    if different:
        reason = f"was made with other {', '.join(different)}, so its trials cannot be compared with new ones"
        raise refusal(study.study_name, reason)
    if searched != known.get("searched"):
        StudyRecord(identity={**known, "searched": searched}).write(study)


def _differences(study: optuna.Study, identity: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What a study was made with other than this, and every parameter that was ever searched in it."""
    different, record = list[str](), StudyRecord.read(study)
    known = {"objective": OBJECTIVE, **(record.identity or {})}
    # A parameter that was ever searched may be fixed now, and the other way round: all are points of one space.
    searched = {*known.get("searched", map(dotted_name, record.search_space or ())), *identity["searched"]}
    for name, now in identity.items():
        before = known.get(name, now)  # what only one of both states is not compared
        if name == "settings":
            either = sorted({*before, *now} - searched)
            different += [each for each in either if _setting(before, each) != _setting(now, each)]
        elif isinstance(before, dict) and isinstance(now, dict):
            different += [each for each, value in now.items() if before.get(each, value) != value]
        elif before != now and name not in ("searched", "source"):  # the fingerprint of data is the same from wherever
            different.append("code, or data that it reads" if name == "code" else name)
    return different, sorted(searched)


def _setting(settings: Mapping[str, Any], name: str) -> Any:
    """Value of a setting; where it is not stated, the default of its field, since a newer version may have added it."""
    branch, _, field = name.partition(".")
    fields = Params.model_fields[branch].annotation.model_fields  # type: ignore[union-attr]
    return settings.get(name, fields[field].default if field in fields else None)


def resolved_params(study: optuna.Study, trial: FrozenTrial, configured: Params) -> Params:
    """Parameters that a trial was trained with, where its objective uses `suggest`; what it stores masked, as configured here."""
    resolved = TrialRecord.read(trial).resolved
    if resolved is None:
        remedy = "begin it with ev.suggest(trial, params), or set best_trial.params yourself"
        raise SearchError(f"Study {study.study_name}: its objective does not record all parameters; {remedy}.")
    here, known = configured.flat(), flatten(resolved)
    values = {name: here[name] if masked(here.get(name), name) == value else value for name, value in known.items()}
    tree = set_values({}, {name: value for name, value in values.items() if value != MASK})
    return Params.from_tree({**configured.model_dump(), **tree})


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from logging every trial while a search of ours runs."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def open_storage(address: str) -> optuna.storages.BaseStorage:
    """Open the storage at ``hpo.study.storage``, any address of a database that Optuna takes; its tables are made."""
    resolved = resolve_sqlite(address)
    if resolved.partition("?")[0].count("@") > 1 and "://" in resolved and sqlite_file(resolved) is None:
        raise SearchError(f"hpo.study.storage={masked(address)}: it has an @ within the password; write that as %40.")
    options: dict[str, Any] = {"engine_kwargs": {"connect_args": {"timeout": 60}}}  # SQLite's own 5 s are short
    if not resolved.startswith("sqlite"):
        os.environ.setdefault("PGCONNECT_TIMEOUT", "5")  # PostgreSQL's own is minutes
        options = {"engine_kwargs": {"pool_pre_ping": True}, "heartbeat_interval": HEARTBEAT, "grace_period": GRACE}
    try:
        # Two processes that make the tables at the same moment fail.
        with lock_between_processes(resolved), warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            if (file := sqlite_file(resolved)) and not file.exists():
                file.touch()  # SQLite itself would let nobody else write to it, whatever the umask
            in_braces = resolved.replace("{", "{{").replace("}", "}}")  # Optuna would fill in what stands there
            return optuna.storages.RDBStorage(in_braces, **options)
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        reason += "; for PostgreSQL: pip install 'evbind[postgres]'" if isinstance(error, ImportError) else ""
        problem = f"hpo.study.storage={address}: the storage cannot be opened ({reason})"
        raise SearchError(f"{masked(problem)}; give one that can, for example sqlite:///optuna.db.") from None


def existing_storage(address: str) -> optuna.storages.BaseStorage | None:
    """Open a storage to look into it: a file of SQLite that is not there is not made."""
    file = sqlite_file(resolve_sqlite(address))
    return open_storage(address) if file is None or file.exists() else None


def lost_ground(study: optuna.Study, error: BaseException | None) -> SearchError | None:
    """What ends a search whose disk, database or MLflow store is the reason of an error; None for an error of the trial's own."""
    goes_on = "the same command goes on, with the trial queued again and its folds kept"
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            problem = f"The disk of {error.filename or workspace()} cannot be written ({error.strerror})"
            return SearchError(f"{problem}; when it can, {goes_on}.")
        if isinstance(error, StorageInternalError | sqlalchemy.exc.OperationalError):
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            problem = masked(f"hpo.study.storage={address_of(study)}: the database cannot be used ({reason})")
            return SearchError(f"{problem}; when it can, {goes_on}.")
        if isinstance(error, TrackingError):
            return SearchError(f"{str(error).rstrip('.')}; {goes_on}.")
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def recording_end(study: optuna.Study) -> Iterator[None]:
    """Record how a search ends; say in one sentence what was lost where it cannot go on without it."""
    error: BaseException | None = None
    try:
        StudyRecord(ended="").write(study)
        yield
    except BaseException as raised:
        own = isinstance(raised, EvbindError) or not isinstance(raised, Exception)
        error = raised if own else lost_ground(study, raised) or raised
        if error is raised:
            raise
        raise error from None
    finally:
        ended = f"{type(error).__name__}: {error}" if error else "FINISHED"
        with contextlib.suppress(Exception):  # where it cannot be written, that is why the search ends
            StudyRecord(ended=ended).write(study)


def check_storage(address: str) -> None:
    """Refuse a storage that studies cannot be written to; a file of SQLite is not made by this."""
    if (file := sqlite_file(resolve_sqlite(address))) is None:
        open_storage(address)
        return
    nearest = next(place for place in (file, *file.parents) if place.exists())
    if file.is_dir() or not os.access(nearest, os.W_OK):
        raise SearchError(f"hpo.study.storage={address}: it cannot be written; name a file that can.")


def storage_of(study: optuna.Study) -> optuna.storages.BaseStorage:
    """Storage of a study; private, since Optuna has no public way to it for a study that was handed in."""
    return study._storage


def address_of(study: optuna.Study) -> str:
    """Address of a study's database, of any other storage its kind; private, since Optuna hides what it wraps in a cache."""
    storage = storage_of(study)
    return str(getattr(getattr(storage, "_backend", storage), "url", type(storage).__name__))
