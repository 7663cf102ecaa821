"""Compose ``params/`` and overrides with Hydra into one validated, frozen `Params`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evbind_lib.config.paths import project_folder, workspace
from evbind_lib.config.schema import FIELDS, GROUPS, Params, dotted_name, flatten, is_entry, set_values
from evbind_lib.errors import ParamsError, did_you_mean

# Sections whose further keys belong to their type, and the keys that every type has.
TYPED = {
    "hpo.sampler": {"type", "n_startup_trials", "seed"},
    "hpo.pruner": {"type", "n_startup_trials", "n_warmup_steps", "interval_steps"},
}


def compose(
    overrides: Sequence[str] = (),
    *,
    data: str | None = None,
    model: str | None = None,
    trainer: str | None = None,
    hpo: str | None = None,
    tracking: str | None = None,
    cluster: str | None = None,
    experiment: str | None = None,
) -> Params:
    """Compose the parameter files, apply the overrides and validate the result.

    Parameters
    ----------
    overrides : sequence of str
        Hydra overrides, applied last, for example ``["hpo.trials.n_trials=30", "model=deberta_v3_base"]``; of two for
        the same key the later one counts.
    data, model, trainer, hpo, tracking, cluster, experiment : str, optional
        A file by name for that group, for example ``hpo="quick"`` for ``params/hpo/quick.yaml``; files in ``params/`` of
        the workspace go before those that ship with evbind.

    Returns
    -------
    Params
        Frozen; ``params.with_values`` makes a changed copy.

    Raises
    ------
    ParamsError
        For an unknown group, file, key or value, or YAML that cannot be read; the sentence names the nearest name.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.n_folds=3"], hpo="quick")
    >>> params.hpo.trials.n_trials, params.training.n_folds, params.data.sensitive
    (10, 3, False)
    >>> ev.compose(["hpo.trials.n_trial=3"])
    Traceback (most recent call last):
    evbind_lib.errors.ParamsError: hpo.trials.n_trial is not a parameter; did you mean 'hpo.trials.n_trials'?
    """
    named = (data, model, trainer, hpo, tracking, cluster, experiment)
    chosen = [f"{group}={name}" for group, name in zip(GROUPS, named, strict=True) if name is not None]
    wanted = _prepare([*chosen, *([overrides] if isinstance(overrides, str) else overrides)])
    tree = _tree("config", wanted)
    _fix(tree)
    return Params.from_tree(tree)


def with_trainer(params: Params, name: str) -> Params:
    """Parameters with what ``params/trainer/NAME.yaml`` sets put in, as these parameters' model would have it."""
    present = {section: getattr(params, section).model_dump() for section in ("data", "model", "training")}
    read = _tree(None, [f"+trainer={name}"], beside=present)
    return params.with_values(flatten({section: read[section] for section in present}))


def split_arguments(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Divide command-line words into choices of files, by group, and overrides."""
    choices = {word.partition("=")[0]: word.partition("=")[2] for word in words if _is_choice(word)}
    return choices, [word for word in words if not _is_choice(word)]


def describe(params: Params) -> dict[str, Any]:
    """The resolved parameters that shape a result, as one short dotted table for a notebook's second cell."""
    hidden = ("model.trainer", "model.search_space", "training.provenance", "hpo.search_space")
    flat = params.flat()
    return {key: value for key, value in flat.items() if not key.startswith(hidden) and value not in (None, {}, [])}


def _is_choice(word: str) -> bool:
    group, equals, _ = word.partition("=")
    return bool(equals) and group in GROUPS


def _prepare(words: Iterable[str]) -> list[str]:
    """Keep the last override of each key; all may name new keys, since the schema refuses what is no parameter."""
    last: dict[str, str] = {}
    for word in words:
        bare = str(word).lstrip("+")
        key, equals, _ = bare.partition("=")
        if not bare.startswith("~") and not (key.strip() and equals):
            raise ParamsError(f"Override {bare!r} is not of the form KEY=VALUE; write as in hpo.trials.n_trials=30.")
        last.pop(key.lstrip("~"), None)
        last[key.lstrip("~")] = bare if bare.startswith("~") or _is_choice(bare) else f"++{bare}"
    return list(last.values())


def _tree(config_name: str | None, overrides: list[str], beside: dict[str, Any] | None = None) -> dict[str, Any]:
    """Compose with Hydra into plain nested values; ``beside`` are values below those that are composed."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    _check_files(overrides)
    _look_into_the_workspace_first()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(project_folder() / "params"), version_base=None):
            config = hydra_compose(config_name, overrides)
        _drop_left_over(config, overrides)
        whole = OmegaConf.merge(OmegaConf.create(beside), config) if beside else config
        return OmegaConf.to_container(whole, resolve=True)  # type: ignore[return-value]
    except Exception as error:
        raise ParamsError(_explain(error)) from None


@functools.cache
def _look_into_the_workspace_first() -> None:
    """Let files of the workspace's ``params/`` go before those that ship, by a plugin of Hydra's search path."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class WorkspaceFirst(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            own = workspace() / "params"
            if own.is_dir() and own != project_folder() / "params":
                search_path.prepend("evbind-workspace", f"file://{own}", anchor="main")

    Plugins.instance().register(WorkspaceFirst)


def _check_files(overrides: Sequence[str]) -> None:
    """Refuse the choice of a file that is not there; Hydra would not say which ones of two folders there are."""
    for group, _, quoted in (word.lstrip("+").partition("=") for word in overrides):
        name = quoted.strip("'\"")
        if group not in GROUPS or name in ("", "null"):
            continue
        folders = [folder / "params" / group for folder in (workspace(), project_folder())]
        known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        hint = did_you_mean(name, known)
        if (group, name) == ("trainer", "hpo_best"):
            # What a search found counts in its own workspace: that of another one is of other data, and nobody asked for it.
            folders, hint = folders[:1], "; a search writes it, so run `evbind hpo_search hpo=quick` first."
        if not any((folder / f"{name}.yaml").is_file() for folder in folders):
            raise ParamsError(f"{group}={name}: there is no file params/{group}/{name}.yaml{hint}")


def _drop_left_over(config: Any, overrides: Sequence[str]) -> None:
    """Where an override names another type, of a searched parameter, sampler or pruner, take out what belonged to the old."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf, open_dict

    named: dict[str, set[str]] = {}  # which keys the overrides set below each entry
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_delete():
            continue
        entry, _, last = override.key_or_group.rpartition(".")
        value = override.value()
        whole = isinstance(value, dict)
        named.setdefault(override.key_or_group if whole else entry, set()).update(map(str, value) if whole else {last})
    for entry, names in named.items():
        node = OmegaConf.select(config, entry) if "type" in names else None
        if entry.startswith("hpo.search_space."):
            belongs = {"type", "when", *FIELDS.get(str(node.type), {"choices"})} if node is not None else set()
        else:
            belongs = TYPED.get(entry, set())
        if node is not None and belongs:
            with open_dict(node):
                for name in set(node) - names - belongs:
                    node.pop(name)


def _fix(tree: dict[str, Any]) -> None:
    """Set what ``hpo.fixed`` names, and take it out of the search."""
    search = tree.get("hpo") or {}
    fixed = flatten(search.get("fixed"))
    if not fixed or not isinstance(fixed, dict):
        return
    try:
        values = {dotted_name(str(name), "hpo.fixed"): value for name, value in fixed.items()}
        space = flatten(search.get("search_space"), is_entry) or {}
        left = {name: entry for name, entry in space.items() if dotted_name(name) not in values}
    except ValueError as error:
        raise ParamsError(str(error)) from None
    set_values(tree, values)
    if space and not left:
        raise ParamsError(
            "hpo.fixed names every searched parameter and leaves nothing to search; take one of them out."
        )
    search["search_space"] = left


def _explain(error: Exception) -> str:
    """Say what Hydra, OmegaConf or YAML raised in one sentence: its own first line, with place and remedy."""
    from hydra.errors import OverrideParseException
    from yaml import YAMLError

    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, YAMLError):
        cause = cause.__cause__
    first_line = str(cause).strip().partition("\n")[0].rstrip(".")
    if isinstance(cause, YAMLError):
        mark = getattr(cause, "problem_mark", None)
        place = f"{Path(mark.name).name}, line {mark.line + 1}" if mark is not None else "params/"
        return f"{place}: not valid YAML ({getattr(cause, 'problem', first_line)}); correct the file."
    if isinstance(error, OverrideParseException):
        shown = str(error.override).lstrip("+")
        return f"Override {shown!r} cannot be read ({first_line}); write KEY=VALUE, lists as [a,b], and quote it for the shell."
    return f"The parameters cannot be composed: {first_line}; check the overrides and the files in params/."
