"""Models: the tiny one, local checkpoints of three families, and what is said where none can be had."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, DebertaV2ForSequenceClassification

from evbind_lib.config.schema import ModelParams, Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold
from evbind_lib.errors import ModelError
from evbind_lib.training.fold import train_fold
from evbind_lib.training.model import check_model, choose_precision, load_model, load_tokenizer
from tests import checkpoints


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    writers = {
        "bert": checkpoints.write_bert,
        "roberta": checkpoints.write_roberta,
        "deberta": checkpoints.write_deberta,
    }
    return {name: write(folder / name) for name, write in writers.items()}


def test_the_tiny_model_has_the_architecture_of_deberta_v3() -> None:
    started = time.perf_counter()
    tokenizer = load_tokenizer(ModelParams(name="tiny"), checkpoints.texts())
    model = load_model(ModelParams(name="tiny"), tokenizer)
    assert time.perf_counter() - started < 2  # the bound the design sets; a tenth of it is usual
    assert isinstance(model, DebertaV2ForSequenceClassification)
    config = model.config
    assert (config.share_att_key, config.relative_attention, config.norm_rel_ebd) == (True, True, "layer_norm")
    assert set(config.pos_att_type) == {"p2c", "c2p"} and config.position_buckets > 0
    assert not config.position_biased_input and config.type_vocab_size == 0 and config.num_labels == 2
    assert config.vocab_size == len(tokenizer)


def test_the_tiny_tokenizer_depends_on_the_texts_and_not_on_their_order() -> None:
    texts = checkpoints.texts()
    one, other = (load_tokenizer(ModelParams(name="tiny"), given) for given in (texts, texts[::-1]))
    assert one.get_vocab() == other.get_vocab()
    assert load_tokenizer(ModelParams(name="tiny"), texts[:50]).get_vocab() != one.get_vocab()
    ids = one("I feel low", "nothing matters")["input_ids"]
    assert one.unk_token_id not in ids
    assert one.convert_ids_to_tokens(ids)[0] == "[CLS]" and one.convert_ids_to_tokens(ids).count("[SEP]") == 2


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta"])
def test_local_checkpoints_train(
    folders: dict[str, Path], brief: Callable[..., Params], corpus: Corpus, folds: list[Fold], name: str
) -> None:
    params = brief(
        f"model.name={folders[name]}", "model.max_length=64", "model.precision=fp32", "training.args.learning_rate=1e-3"
    )
    check_model(params.model)
    probabilities = train_fold(corpus, folds[0], params).predictions["probability"]
    assert probabilities.between(0, 1).all() and probabilities.nunique() > 10


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta"])
def test_the_weights_are_those_of_the_folder(folders: dict[str, Path], name: str) -> None:
    params = ModelParams(name=str(folders[name]), max_length=64)
    model = load_model(params, load_tokenizer(params, ()))
    stored = AutoModelForSequenceClassification.from_pretrained(folders[name], dtype=torch.float32).state_dict()
    loaded = model.state_dict()
    assert {weight.dtype for weight in loaded.values() if weight.is_floating_point()} == {torch.float32}
    assert all(torch.equal(loaded[key], weight) for key, weight in stored.items() if "classifier" not in key)


def test_a_model_shorter_than_max_length_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"model\.max_length=600.*model\.max_length=512"):
        check_model(ModelParams(name=str(folders["bert"]), max_length=600))
    check_model(ModelParams(name=str(folders["roberta"]), max_length=64))
    # RoBERTa's configuration says two positions more than it has.
    with pytest.raises(ModelError, match=r"model\.max_length=66"):
        check_model(ModelParams(name=str(folders["roberta"]), max_length=66))
    check_model(ModelParams(name=str(folders["deberta"]), max_length=600))  # relative positions have no end


def test_an_unreachable_hub_is_told_soon_and_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    started = time.perf_counter()
    with pytest.raises(ModelError, match=r"cannot be reached .* give its folder: model.name=/path/to/deberta-v3-base"):
        check_model(ModelParams(name="microsoft/deberta-v3-base"))
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("./nowhere", "is not a folder"), ("/tmp", "has no config.json")],
)
def test_a_folder_that_holds_no_model(name: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        load_tokenizer(ModelParams(name=name), ())


def test_a_folder_without_its_tokenizer_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folders["bert"] / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"model\.name="):
        check_model(ModelParams(name=str(tmp_path)))


def test_precision() -> None:
    assert choose_precision("fp32") == "fp32"
    assert choose_precision("auto") in ({"bf16", "fp16"} if torch.cuda.is_available() else {"bf16", "fp32"})
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match=r"needs a GPU and there is none; set model\.precision=auto"):
            choose_precision("fp16")
