"""Compose ``params/`` and overrides with Hydra into one validated, frozen `Params`."""

import contextlib
import functools
import glob
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evbind_lib.config.distribution import FIELDS
from evbind_lib.config.encoders import TINY, encoder_default
from evbind_lib.config.masking import SAMPLE, masked
from evbind_lib.config.paths import project_folder, workspace
from evbind_lib.config.schema import GROUPS, TYPED, Params, TrackingParams, dotted_name, flatten, is_entry, set_values
from evbind_lib.errors import EvbindError, ParamsError, did_you_mean, shown

CHOICE = re.compile(f"({'|'.join(GROUPS)})=")  # of a file of a group
DEFAULT_STUDY = "deberta-v3-hpo"  # of the sample and the tiny model
ODD_NUMBER, ODD_YAML = re.compile(r"[-+]?(\d[\d_]*:.*|0[\d_]+)"), re.compile(r"\*|\d:\d|\b0\d")
SEARCHED = ("data", "model", "training", "hpo")  # branches that the experiment of a search holds


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
    overrides
        Hydra overrides, applied last, for example ``["hpo.trials.n_trials=30"]``; of two for the same key the later counts.
    data, model, trainer, hpo, tracking, cluster, experiment
        A file by name, for example ``hpo="quick"`` for ``params/hpo/quick.yaml``; files in ``params/`` of the workspace go
        before those that ship with evbind. ``experiment`` goes last; one that a search wrote is taken as a whole, in place of
        the files of data, model, trainer and hpo, and what is chosen after it among the overrides goes on top.

    Returns
    -------
    Params
        Frozen; ``params.with_values`` makes a changed copy. A `ParamsError` names the nearest name to an unknown one.

    Examples
    --------
    >>> import evbind_lib as ev
    >>> params = ev.compose(["training.n_folds=3"], hpo="quick")
    >>> params.hpo.trials.n_trials, params.training.n_folds
    (10, 3)
    """
    named = (data, model, trainer, hpo, tracking, cluster, experiment)
    if not isinstance(overrides, list | tuple):
        raise ParamsError(f'overrides={shown(overrides)}: it must be a list of texts, as ["training.n_folds=3"] or [].')
    chosen = [f"{group}={name}" for group, name in zip(GROUPS, named, strict=True) if name is not None]
    words = _prepare([*chosen, *overrides])
    tree = _experiment_tree(words)
    if tree is None:
        tree = _tree("config", words)
        _check_encoder(tree, words)
    search = tree["hpo"] if isinstance(tree.get("hpo"), dict) else {}
    space, fixed = search.get("search_space"), search.get("fixed") or {}
    if isinstance(space, dict) and isinstance(fixed, dict):  # the schema refuses anything else
        search |= {"search_space": flatten(space, is_entry), "fixed": flatten(fixed)}
        _drop_left_over(search, words)
        _fix(tree, search)
    return Params.from_tree(tree)


def tracking_of(given: Mapping[str, Any]) -> TrackingParams:
    """Where an execution with these parameters is recorded; where they cannot be used, what they say of tracking counts."""
    overrides = listed if isinstance(listed := given.get("overrides"), list | tuple) else []
    chosen = {group: given[group] for group in GROUPS if isinstance(given.get(group), str)}
    alone = [word for word in overrides if str(word).lstrip("+~").startswith("tracking")]
    for words, files in ((overrides, chosen), (alone, {name: chosen[name] for name in chosen if name == "tracking"})):
        with contextlib.suppress(ParamsError):
            return compose(words, **files).tracking
    return compose().tracking


def experiment_name(study: str) -> str:
    """Name of the experiment of a study: a file's, and one that Hydra reads as a text."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", study)
    return f"study_{name}" if re.match(r"(?i)(null|true|false|nan|inf)$|[^a-z]", name) else name


def default_study_name(data: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Name of a study that nobody named: after the data's file, where it says more than its role, and the model."""
    file, name = str(data.get("pairs") or data.get("posts") or data.get("claims") or ""), str(model.get("name"))
    if file.startswith(SAMPLE) and name == TINY:
        return DEFAULT_STUDY
    stem = "sample" if file.startswith(SAMPLE) else Path(file).name.partition(".")[0]
    of_data = data.get("format") if re.fullmatch(r"(posts|pairs|claims|train|dev|test|data|[-_])*", stem) else stem
    return experiment_name(f"{of_data}-{Path(name.removeprefix('package:')).name}"[:150])


def _experiment_tree(words: Sequence[str]) -> dict[str, Any] | None:
    """The tree of an experiment that a search wrote, with what stands after it on top; None where none was chosen."""
    place = next((word for word in words if word.startswith("experiment=")), "")
    own: dict[str, Any] = {}
    with contextlib.suppress(ParamsError):  # told when it is put over the other files
        own = _tree(None, [f"+{place}"]) if place else {}
    branches = {key.rpartition(".")[0] for key in flatten(own)}
    if not ({*SEARCHED} <= own.keys() and {"training.provenance", "hpo.study"} <= branches):
        return None  # one that was written by hand is put over the other files by Hydra
    # Where studies, runs and workers are, is said where it is used.
    here = ("hpo=", "tracking=", "cluster=", "++tracking.", "++cluster.", "++hpo.study.storage=")
    rest = _tree("config", [word for word in words if word.startswith(here)])
    after = [f"+{word}" if CHOICE.match(word) else word for word in words[words.index(place) + 1 :]]
    tree = _tree(None, [f"+{place}", *after], beside={"hpo": {"study": {"storage": rest["hpo"]["study"]["storage"]}}})
    training, another_set = tree.get("training"), any(word.startswith("+trainer=") for word in after)
    if another_set and isinstance(training, dict) and training.get("provenance") == own["training"]["provenance"]:
        training["provenance"] = None  # the search's own
    return tree | {name: rest[name] for name in ("tracking", "cluster")}


def with_trainer(params: Params, name: str) -> Params:
    """Parameters with what ``params/trainer/NAME.yaml`` sets put in, as these parameters' model would have it."""
    present = params.model_dump(include={"data", "model", "training"})
    return params.with_values(flatten(_tree(None, [f"+trainer={name}"], beside=present)))


def split_arguments(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Divide command-line words into choices of files, by group, and overrides."""
    choices = dict(word.split("=", 1) for word in words if CHOICE.match(word))
    return choices, [word for word in words if not CHOICE.match(word)]


def describe(params: Params) -> dict[str, Any]:
    """The resolved parameters that shape a result, as one short dotted table for a notebook's second cell."""
    hidden = ("model.trainer", "model.search_space", "training.provenance", "hpo.search_space")
    flat = params.flat().items()
    return masked({key: value for key, value in flat if not key.startswith(hidden) and value not in (None, {}, [])})


def _prepare(words: Iterable[str]) -> list[str]:
    """Keep the last override of each key; all may name new keys, since the schema refuses what is no parameter."""
    last: dict[str, str] = {}
    for given in words:
        if not isinstance(given, str) or not re.match(r"~|\+{0,2}[^=\s]+=", given):
            problem = "is not of the form KEY=VALUE; write as in hpo.trials.n_trials=30"
            raise ParamsError(f"Override '{shown(masked(given))}' {problem}.")
        word = given.lstrip("+")
        key = word.lstrip("~").partition("=")[0]
        if key.startswith(("hydra.", "hydra/")):
            raise ParamsError(f"{shown(key)} is not a parameter: Hydra composes here, and runs nothing.")
        last.pop(key, None)
        last[key] = word if word.startswith("~") or CHOICE.match(word) else f"++{word}"
    return list(last.values())


def _tree(config_name: str | None, overrides: list[str], beside: dict[str, Any] | None = None) -> dict[str, Any]:
    """Compose into plain nested values: files by Hydra, plain values on top; ``beside`` are values below all of these."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    _check_files(overrides)
    # For files of params/model/, and the study's name in params/hpo/.
    OmegaConf.register_new_resolver("encoder", encoder_default, replace=True)
    named = lambda *, _root_: default_study_name(_root_.data, _root_.model)  # noqa: E731 - its argument is OmegaConf's word
    OmegaConf.register_new_resolver("study_name", named, replace=True)
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        # What is taken out may have been set before, and what evbind does not know Hydra refuses.
        odd = any(each.is_delete() or each.is_sweep_override() or each.package for each in parsed)
        plain = [] if odd else [each for each in parsed if each.is_force_add()]
        others = tuple(word for word, each in zip(overrides, parsed, strict=True) if each not in plain)
        states = tuple((file, file.stat().st_ctime_ns) for file in _files(workspace()) + _files(project_folder()))
        config = OmegaConf.merge(beside or {}, _composed(config_name, others, states))
        for each in plain:
            OmegaConf.update(config, each.key_or_group, each.value(), merge=True, force_add=True)
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except Exception as error:
        ours: BaseException | None = error
        while ours and not isinstance(ours, EvbindError):
            ours = ours.__context__
        if ours:  # of a resolver
            raise ours from None
        raise ParamsError(_explain(error)) from None


@functools.lru_cache(maxsize=100)
def _composed(config_name: str | None, words: tuple[str, ...], states: tuple[Any, ...]) -> Any:
    """What Hydra composes, which takes it a tenth of a second, kept as long as the states of files are these."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    _look_into_the_workspace_first()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(config_dir=str(project_folder() / "params"), version_base=None):
        return hydra.compose(config_name, list(words))


@functools.cache
def _look_into_the_workspace_first() -> None:
    """Let files of the workspace's ``params/`` go before those that ship, by a plugin of Hydra's search path."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class WorkspaceFirst(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            if (own := workspace() / "params").is_dir():
                search_path.prepend("evbind-workspace", f"file://{own}", anchor="main")

    Plugins.instance().register(WorkspaceFirst)


def _check_files(overrides: Sequence[str]) -> None:
    """Refuse the choice of a file that is not there, where Hydra would not say which there are, and files that hang it."""
    if (own := workspace() / "params").exists() and not own.is_dir():
        raise ParamsError("params/ of the workspace is not a folder, but files are looked for in it; move it away.")
    for file in _files(workspace()):
        if os.access(file, os.R_OK):  # of others Hydra says so where they are chosen
            _check_yaml(file)
    # The experiment first: where there is none, files are named that it would have stood for.
    choices, _ = split_arguments([word.lstrip("+") for word in overrides])
    for group, quoted in sorted(choices.items(), key=lambda choice: choice[0] != "experiment"):
        name = quoted.strip("'\"")
        if name != "null" and name not in (known := group_files(group)):
            hint = "; a file is named without its folder and .yaml" if name.endswith(".yaml") else ""
            hint += did_you_mean(Path(name).stem, known)
            if name == "hpo_best" or (group == "experiment" and not known):
                hint = "; a search writes it, so run `evbind hpo_search hpo=quick` first."
            raise ParamsError(f"{group}={shown(name)}: there is no file params/{group}/{shown(name)}.yaml{hint}")


def _files(place: Path) -> list[Path]:
    """Parameter files of the workspace or beside the library, also those in folders that are links."""
    found = glob.iglob("params/**/*.yaml", root_dir=place, recursive=True)
    return list(filter(Path.is_file, map(place.joinpath, found)))


def group_files(group: str) -> list[str]:
    """Names of a group's files in the workspace and beside the library."""
    files = [[*(each / "params" / group).glob("*.yaml")] for each in (workspace(), project_folder())]
    own, shipped = ({file.stem for file in each if file.is_file()} for each in files)
    return sorted(own | (shipped - {"hpo_best"}))  # that of another workspace is of other data


def _check_yaml(file: Path) -> None:
    """Refuse times and leading zeros, which YAML counts by 60 and 8, and aliases (``*name``) that stand for too many values."""
    import yaml

    @functools.cache
    def written_out(node: yaml.Node) -> int:
        if node.tag.endswith((":int", ":float")) and ODD_NUMBER.fullmatch(str(node.value)):
            problem = "YAML counts it by 60 or by 8; write it as a plain number, or a text in quotes"
            raise ParamsError(f"{file.name}, line {node.start_mark.line + 1}: {node.value}: {problem}.")
        below = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        return 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(map(written_out, below)))

    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        if not ODD_YAML.search(text) or written_out(yaml.compose(text, yaml.SafeLoader)) < 100_000:
            return
    except yaml.YAMLError:
        return  # told when the file is composed
    except RecursionError:  # an alias within what it stands for
        pass
    raise ParamsError(f"{file.name}: its aliases (*name) stand for too many values; write out what is meant.")


def _check_encoder(tree: dict[str, Any], words: Sequence[str]) -> None:
    """Refuse another encoder under the rates of the tiny model, which are made for random weights."""
    chosen = [word.partition("=")[2] for word in words if word.startswith("model=")] or [TINY]
    name = (tree.get("model") or {}).get("name", TINY)
    if chosen[-1] == TINY and name != TINY:
        problem = "model=tiny (the default) has learning rates for random weights, with which a pretrained model learns nothing"
        raise ParamsError(f"model.name={shown(name)}: {problem}; write model=pretrained model.name={shown(name)}.")


def _drop_left_over(search: dict[str, Any], overrides: list[str]) -> None:
    """Where overrides give a searched parameter, the sampler or the pruner another type, take out what the old type had."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(overrides)
    given = [f"{key}." for each in parsed for key in flatten({each.key_or_group: each.value()})]
    nodes = {f"hpo.search_space.{name}": node for name, node in search["search_space"].items()}
    for entry, node in {**nodes, **{f"hpo.{name}": search.get(name) for name in TYPED}}.items():
        if isinstance(node, dict) and f"{entry}.type." in given:
            stays = TYPED.get(entry.removeprefix("hpo."), {"type", "when", *FIELDS.get(str(node.get("type")), ())})
            for name in set(node) - set(stays):
                if not any(key.startswith(f"{entry}.{name}.") for key in given):
                    del node[name]


def _fix(tree: dict[str, Any], search: dict[str, Any]) -> None:
    """Set what ``hpo.fixed`` names, and take it out of the search, of which every entry has a type."""
    try:
        values = {dotted_name(name, "hpo.fixed"): value for name, value in search["fixed"].items()}
        left = {name: entry for name, entry in search["search_space"].items() if dotted_name(name) not in values}
    except ValueError as error:
        raise ParamsError(str(error)) from None
    if len(values) < len(search["fixed"]):
        raise ParamsError("hpo.fixed has one parameter under two names (x is training.args.x); take one of them out.")
    if values and not left:
        raise ParamsError("hpo.fixed names every searched parameter, so nothing is left to search; take one out.")
    for name, entry in left.items():
        if isinstance(entry, dict) and "type" not in entry:  # most often a mistyped name
            near = did_you_mean(name, [other for other in left if other != name])
            raise ParamsError(f"hpo.search_space.{name} has no type ({', '.join(FIELDS)}){near}")
    set_values(tree, {**values, "hpo.search_space": left})


def _explain(error: Exception) -> str:
    """Say what Hydra, OmegaConf or YAML raised in one sentence: its own first line, with place and remedy."""
    from hydra.errors import OverrideParseException
    from yaml import MarkedYAMLError

    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, MarkedYAMLError) and (mark := cause.problem_mark):
        place = f"{Path(mark.name).name}, line {mark.line + 1}"
        return f"{place}: not valid YAML ({masked(cause.problem)}); correct the file."
    first = str(cause).strip().partition("\n")[0].rstrip(".")
    said = "something is nested too deeply in them" if isinstance(cause, RecursionError) else shown(masked(first))
    if isinstance(error, OverrideParseException):
        override = shown(masked(str(error.override).lstrip("+")))
        remedy = "write KEY=VALUE, lists as [a,b], a text with signs as \"KEY='TEXT'\", in quotes for the shell"
        return f"Override '{override}' cannot be read ({said}); {remedy}."
    return f"The parameters cannot be composed: {said}; check the overrides and the files in params/."
