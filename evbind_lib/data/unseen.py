"""Data that no trial has seen: groups held out of every fold, or files of their own; refused where trials may have seen them."""

from pathlib import Path

from evbind_lib.config.masking import FILES
from evbind_lib.config.paths import resolve_path
from evbind_lib.config.schema import Params
from evbind_lib.data.corpus import DEFAULT_CRITERIA, Corpus, load_corpus
from evbind_lib.data.folds import groups_digest, held_out
from evbind_lib.errors import DataError, ParamsError


def split_off(corpus: Corpus, params: Params) -> tuple[Corpus, Corpus]:
    """What may be trained on, and what no trial has seen: ``data.test``, or the groups that ``training.holdout`` keeps apart."""
    test, fraction = params.data.test, params.training.holdout
    if bool(test) == bool(fraction):
        problem = "both are set, and only one can be" if test else "neither is set, so no data are unseen"
        remedy = "set training.holdout=0.2, in the search as well, or data.test=FILE"
        raise ParamsError(f"training.holdout and data.test: {problem}; {remedy}.")
    if test:
        unseen = _read(params)
        _check_apart(corpus, unseen, f"data.test={test}")
        return corpus, unseen
    groups, searched = held_out(corpus, params), params.training.provenance or {}
    same_data = searched.get("data_fingerprint") == corpus.fingerprint
    if same_data and searched.get("held_out") != groups_digest(groups):
        problem = f"the search that found this trainer set (study {searched.get('study')}) held out other posts or none"
        remedy = "search with the same training.holdout and seed, or set data.test=FILE"
        raise ParamsError(f"training.holdout={fraction:g}: {problem}, so its trials have seen these; {remedy}.")
    return corpus.subset(set(corpus.groups) - groups), corpus.subset(groups)


def _read(params: Params) -> Corpus:
    """The corpus of ``data.test``: a table of pairs, or a folder with posts and annotations in ReDSM5's columns."""
    data, place = params.data, resolve_path(str(params.data.test))
    criteria = data.criteria or (DEFAULT_CRITERIA if data.format == "redsm5" else None)
    files = dict.fromkeys(FILES) | {"format": "pairs", "pairs": str(data.test), "criteria": criteria}
    if place.is_dir():
        files |= {"format": "redsm5", "pairs": None, **{name: _only(place, name) for name in ("posts", "annotations")}}
    # Other data than the search's are what it is for.
    changed = {f"data.{name}": value for name, value in files.items()} | {"training.provenance": None}
    try:
        return load_corpus(params.with_values(changed))
    except DataError as error:
        raise DataError(str(error).replace("data.pairs=", "data.test=", 1)) from None


def _only(folder: Path, name: str) -> str:
    found = sorted(folder.glob(f"*{name}.*"))
    if len(found) != 1:
        problem = f"the folder has {len(found)} files {name}.*, and needs one"
        remedy = "name a folder with posts and annotations, or a table of pairs"
        raise DataError(f"data.test={folder.name}: {problem}; {remedy}.")
    return str(found[0])


def _check_apart(corpus: Corpus, unseen: Corpus, place: str) -> None:
    """Refuse a test set that shares groups, posts or annotated sentences with what is trained on."""
    posts = [{*each.pairs["post_id"], *each.sentences["post_id"]} for each in (unseen, corpus)]
    shared = {
        f"groups ({unseen.grouped_by})": ({*unseen.groups}, {*corpus.groups}),
        "posts": (posts[0], posts[1]),
        "annotated sentences": ({*unseen.pairs["sentence"]}, {*corpus.sentences["sentence"]}),
    }
    for what, (there, here) in shared.items():
        if both := there & here:
            problem = f"{len(both)} of its {len(there)} {what} are in the training data too, so they are not unseen"
            raise DataError(f"{place}: {problem}; take them out of one of both.")
