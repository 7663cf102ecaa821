"""Compose ``params/`` and overrides with Hydra into one validated, frozen `Params`; know where files of a person lie.

Imports `errors`, `sentences`, `distributions` and `schema`; every room above may import it.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evbind_lib.config.distributions import ENTRY_KEYS, KINDS, flatten
from evbind_lib.config.schema import (
    ClusterParams,
    DataParams,
    ModelParams,
    Params,
    TrackingParams,
    TrainingParams,
    dotted_name,
    set_values,
)
from evbind_lib.config.sentences import validation_sentence
from evbind_lib.errors import ParamsError, did_you_mean

__all__ = [
    "ClusterParams",
    "DataParams",
    "ModelParams",
    "Params",
    "TrackingParams",
    "TrainingParams",
    "compose",
    "project_folder",
    "resolve_path",
    "resolve_sqlite",
    "split_arguments",
    "with_trainer",
    "workspace",
]

GROUPS = ("data", "model", "trainer", "hpo", "tracking", "cluster")
# Below these keys a person may name things that the YAML files do not list.
OPEN_BRANCHES = (
    *("training.args.", "hpo.search_space.", "hpo.sampler.", "hpo.pruner."),
    *("hpo.constraints.", "hpo.fixed."),
)


NO_BEST = (
    "trainer=hpo_best: params/trainer/hpo_best.yaml does not exist yet; a search writes it, so run `evbind hpo_search hpo=quick` "
    "first."
)
# Sections whose further keys belong to their type, and the keys that every type has.
TYPED = {
    "hpo.sampler": {"type", "n_startup_trials", "seed"},
    "hpo.pruner": {"type", "n_startup_trials", "n_warmup_steps", "interval_steps"},
}


def project_folder() -> Path:
    """Folder of the checkout: notebooks/, params/ and evbind_lib/ lie in it."""
    return Path(__file__).resolve().parent.parent.parent


def workspace() -> Path:
    """Folder that all state goes to: ``EVBIND_WORKSPACE``, or the checkout itself."""
    chosen = os.environ.get("EVBIND_WORKSPACE")
    return Path(chosen).expanduser().resolve() if chosen else project_folder()


def resolve_path(path: str) -> Path:
    """Absolute path of an input file: as seen from the current folder, else from the workspace, else from the checkout.

    Parameters
    ----------
    path : str
        As written in the parameters.

    Returns
    -------
    pathlib.Path
        The first that exists; where none does, the path seen from the current folder.
    """
    given = Path(path).expanduser()
    places = [Path.cwd() / given, workspace() / given, project_folder() / given]
    return next((place.resolve() for place in places if place.exists()), places[0])


def resolve_sqlite(url: str) -> str:
    """Make the file of an SQLite address absolute, in the workspace; other addresses are left as they are."""
    match = re.fullmatch(r"sqlite:///(?!/)(.+)", url)
    return f"sqlite:///{workspace() / match[1]}" if match else url


def compose(choices: Mapping[str, str] | None = None, overrides: Sequence[str] = ()) -> Params:
    """Compose the parameter files, apply the overrides and validate the result.

    Parameters
    ----------
    choices : mapping of str to str, optional
        A file by name for a group, for example ``{"hpo": "quick"}``.
    overrides : sequence of str
        Hydra overrides, applied last, for example ``["hpo.trials.n_trials=30", "model=deberta_v3_base"]``; of two for
        the same key the later one counts.

    Returns
    -------
    Params

    Raises
    ------
    ParamsError
        For an unknown group, file, key or value, or YAML that cannot be read; the sentence names the nearest name.
    """
    chosen = [f"{group}={name}" for group, name in (choices or {}).items()]
    wanted = _prepare([*chosen, *overrides])
    if "trainer=hpo_best" in wanted:
        _check_best()
    tree = _tree("config", wanted)
    _fix(tree)
    return _validated(tree)


def with_trainer(params: Params, name: str) -> Params:
    """Parameters with what a file of the trainer group sets put in; everything else stays.

    Parameters
    ----------
    params : Params
        Its model decides what a trainer file leaves to the model.
    name : str
        A file in ``params/trainer/``, for example ``hpo_best``.

    Returns
    -------
    Params

    Raises
    ------
    ParamsError
        When there is no such file, or something in it is not allowed.
    """
    if name == "hpo_best":
        _check_best()
    present = {section: getattr(params, section).model_dump() for section in ("data", "model", "training")}
    read = _tree(None, [f"+trainer={name}"], beside=present)
    tree = params.model_dump()
    set_values(tree, flatten({section: read[section] for section in present}))
    return _validated(tree)


def _tree(config_name: str | None, overrides: list[str], beside: dict[str, Any] | None = None) -> dict[str, Any]:
    """Compose with Hydra into plain nested values; ``beside`` are values below those that are composed."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _look_into_the_workspace_first()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(project_folder() / "params"), version_base=None):
            config = hydra_compose(config_name=config_name, overrides=overrides)
        _drop_left_over(config, overrides)
        whole = OmegaConf.merge(OmegaConf.create(beside), config) if beside else config
        return OmegaConf.to_container(whole, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        first_line = str(error).splitlines()[0]
        raise ParamsError(f"The parameters cannot be resolved: {first_line}; check the ${{...}} in params/.") from None
    except Exception as error:
        raise _composition_error(error, overrides) from None


def _validated(tree: dict[str, Any]) -> Params:
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        _check_new_names(error)
        raise ParamsError(validation_sentence(error, Params)) from None


def _check_new_names(error: ValidationError) -> None:
    """Where a searched parameter has no type, it may be a mistyped name: then say which it could be."""
    for problem in error.errors():
        if problem["type"] == "union_tag_not_found":
            try:
                dotted_name(str(problem["loc"][-1]))
            except ValueError as unknown:
                raise ParamsError(str(unknown)) from None


def _check_best() -> None:
    """Take what a search found only from this workspace: that of another one is of other data, and nobody asked for it."""
    if not (workspace() / "params" / "trainer" / "hpo_best.yaml").is_file():
        raise ParamsError(NO_BEST)


def _fix(tree: dict[str, Any]) -> None:
    """Set what ``hpo.fixed`` names, and take it out of the search."""
    search = tree.get("hpo", {})
    fixed, space = flatten(search.get("fixed")) or {}, search.get("search_space")
    if not fixed or not isinstance(fixed, dict):
        return
    try:
        values = {dotted_name(name, "hpo.fixed"): value for name, value in fixed.items()}
    except ValueError as error:
        raise ParamsError(str(error)) from None
    set_values(tree, values)
    searched = flatten(space, leaf=ENTRY_KEYS)
    left = {name: entry for name, entry in searched.items() if _dotted_or_as_it_is(name) not in values}
    if searched and not left:
        raise ParamsError(
            "hpo.fixed names every searched parameter, so nothing is left to search; take one of them out."
        )
    search["search_space"] = left


def _dotted_or_as_it_is(name: str) -> str:
    try:
        return dotted_name(name)
    except ValueError:  # refused later, with its place
        return name


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Divide command-line words into group choices and overrides.

    Parameters
    ----------
    arguments : sequence of str
        For example ``["hpo=quick", "training.n_folds=3"]``.

    Returns
    -------
    choices : dict of str to str
        ``{"hpo": "quick"}``.
    overrides : list of str
        ``["training.n_folds=3"]``.
    """
    choices: dict[str, str] = {}
    overrides: list[str] = []
    for word in arguments:
        group, equals, name = word.partition("=")
        if equals and group in GROUPS:
            choices[group] = name
        else:
            overrides.append(word)
    return choices, overrides


def _prepare(overrides: Sequence[str]) -> list[str]:
    """Keep the last override of each key, and let open branches take new names without Hydra's plus sign."""
    kept: dict[str, str] = {}
    for override in overrides:
        is_pair = isinstance(override, str) and override.partition("=")[0].strip() and "=" in override
        if not is_pair and not str(override).startswith("~"):
            raise ParamsError(
                f"Override {override!r} is not of the form KEY=VALUE; write for example hpo.trials.n_trials=30."
            )
        key = override.partition("=")[0].lstrip("+~")
        kept.pop(key, None)
        opens = f"{key}.".startswith(OPEN_BRANCHES) and not override.startswith(("+", "~"))
        kept[key] = f"++{override}" if opens else override
    return list(kept.values())


@functools.cache
def _look_into_the_workspace_first() -> None:
    """Let files of the workspace's ``params/`` go before those of the checkout, by a plugin of Hydra's search path."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class WorkspaceFirst(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            own = workspace() / "params"
            if own.is_dir() and own != project_folder() / "params":
                search_path.prepend("evbind-workspace", f"file://{own}", anchor="main")

    Plugins.instance().register(WorkspaceFirst)


def _drop_left_over(config: Any, overrides: Sequence[str]) -> None:
    """Where an override names another type, of a searched parameter, a sampler or a pruner, take out what belongs to the old."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf, open_dict

    named: dict[str, set[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        if not key.startswith(("hpo.search_space.", *TYPED)) or override.is_delete():
            continue
        if isinstance(value, dict):
            named.setdefault(key, set()).update(str(name) for name in value)
        else:
            entry, _, name = key.rpartition(".")
            named.setdefault(entry, set()).add(name)
    for entry, names in named.items():
        node = OmegaConf.select(config, entry)
        if "type" in names and OmegaConf.is_dict(node) and node.type in KINDS:
            old = ENTRY_KEYS - set(KINDS[node.type].model_fields)
            with open_dict(node):
                for name in old - names:
                    node.pop(name, None)
        elif "type" in names and entry in TYPED:
            with open_dict(node):
                for name in set(node) - names - TYPED[entry]:
                    node.pop(name)


def _composition_error(error: Exception, overrides: list[str]) -> ParamsError:
    """Turn what Hydra or YAML raised into one sentence with the nearest name."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from yaml import YAMLError

    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, YAMLError):
        cause = cause.__cause__
    if isinstance(cause, YAMLError):
        mark = getattr(cause, "problem_mark", None)
        place = f"{Path(mark.name).name}, line {mark.line + 1}" if mark is not None else "params/"
        return ParamsError(f"{place}: not valid YAML ({getattr(cause, 'problem', cause)}); mend the file.")
    if isinstance(error, OverrideParseException):
        reason = str(error.__cause__ or error).splitlines()[0]
        return ParamsError(
            f"Override {str(error.override).lstrip('+')!r} cannot be read ({reason}); write KEY=VALUE, lists as [a,b], and "
            "quote it for the shell."
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if (group, name) == ("trainer", "hpo_best"):
            return ParamsError(NO_BEST)
        known = sorted({*(error.options or []), *_files_of(group)})
        return ParamsError(f"{group}={name}: there is no file params/{group}/{name}.yaml{did_you_mean(name, known)}")
    text = str(error)
    match = re.search(r"Could not (?:override|delete)[^']*'\+*([^'@]+)'", text)
    if match:
        key = match[1]
        if "." not in key:
            known = [*GROUPS, "training"]
            return ParamsError(f"{key}: there is no group or parameter of that name{did_you_mean(key, known)}")
        return ParamsError(f"{key} is not a parameter{did_you_mean(key, _known_keys())}")
    first_line = text.splitlines()[0].rstrip(".")
    return ParamsError(f"The parameters cannot be composed from {' '.join(overrides)}: {first_line}; check params/.")


def _files_of(group: str) -> list[str]:
    folders = [project_folder() / "params" / group, workspace() / "params" / group]
    return [file.stem for folder in folders if folder.is_dir() for file in folder.glob("*.yaml")]


def _known_keys() -> list[str]:
    return list(compose().flat())


def describe(params: Params) -> dict[str, Any]:
    """The resolved parameters that shape a result, as one short dotted table for a notebook's second cell."""
    hidden = ("model.trainer", "model.search_space", "training.provenance", "hpo.search_space")
    flat = params.flat()
    return {key: value for key, value in flat.items() if not key.startswith(hidden) and value not in (None, {}, [])}
