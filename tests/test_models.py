"""Classifiers by name: what is loaded, and what is said where it cannot be."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import timm
import torch
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from captum_transformer_lrp import examples
from captum_transformer_lrp.models import (
    ModelLoadError,
    load_image_model,
    load_text_model,
    load_weights,
    read_checkpoint,
)

TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def three_class_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoints") / "three.safetensors"
    save_file(timm.create_model(TINY, num_classes=3).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def hugging_face_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels = {0: "cat", 1: "dog"}
    config = ViTConfig(**sizes, intermediate_size=16, image_size=32, patch_size=16, id2label=labels)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_checkpoint_brings_its_number_of_classes(three_class_checkpoint: Path) -> None:
    loaded = load_image_model(TINY, checkpoint=three_class_checkpoint)
    assert loaded.class_names == ("class 0", "class 1", "class 2")
    assert not loaded.model.training


def test_imagenet_classes_have_their_names(tmp_path: Path) -> None:
    path = tmp_path / "imagenet.safetensors"
    save_file(timm.create_model(TINY).state_dict(), path)
    names = load_image_model(TINY, checkpoint=path).class_names
    assert len(names) == 1000
    assert names[207] == "golden retriever"


def test_preprocessing_is_undone_for_the_picture(three_class_checkpoint: Path) -> None:
    loaded = load_image_model(TINY, checkpoint=three_class_checkpoint)
    pixels = loaded.preprocess(Image.new("RGB", (300, 200), (255, 0, 51)))
    assert pixels.shape == (3, 224, 224)
    seen = loaded.visible(pixels).mean((1, 2))
    torch.testing.assert_close(seen, torch.tensor([1.0, 0.0, 0.2]), atol=1e-3, rtol=0)


def test_a_hugging_face_folder_is_loaded_with_its_processor_and_labels(
    hugging_face_folder: Path,
) -> None:
    loaded = load_image_model(str(hugging_face_folder))
    pixels = loaded.preprocess(Image.new("RGB", (100, 50), (255, 0, 255)))
    assert loaded.class_names == ("cat", "dog")
    assert loaded.model(pixels[None]).logits.shape == (1, 2)
    seen = loaded.visible(pixels).mean((1, 2))
    torch.testing.assert_close(seen, torch.tensor([1.0, 0.0, 1.0]), atol=1e-3, rtol=0)


def test_a_hugging_face_folder_takes_a_checkpoint(hugging_face_folder: Path) -> None:
    weights = hugging_face_folder / "model.safetensors"
    chosen = load_image_model(str(hugging_face_folder), checkpoint=weights).model.state_dict()
    saved = load_image_model(str(hugging_face_folder)).model.state_dict()
    torch.testing.assert_close(chosen, saved, rtol=0, atol=0)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
def test_weights_of_a_training_script_are_found(tmp_path: Path, wrap) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrap({"weight": torch.ones(1)}), path)
    assert list(read_checkpoint(path)) == ["weight"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"root:x:0:0:root:/root"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=f"cannot read the checkpoint .*damaged{suffix}"):
        read_checkpoint(path)


def test_a_truncated_checkpoint_is_named(tmp_path: Path, three_class_checkpoint: Path) -> None:
    path = tmp_path / "half.safetensors"
    path.write_bytes(three_class_checkpoint.read_bytes()[:100_000])
    with pytest.raises(ModelLoadError, match=r"cannot read the checkpoint .*half"):
        read_checkpoint(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ModelLoadError, match="cannot read the checkpoint"):
        read_checkpoint(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_file_without_weights_is_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "log.pth")
    with pytest.raises(ModelLoadError, match=r"log\.pth holds no state dict"):
        read_checkpoint(tmp_path / "log.pth")


def test_a_mismatch_lists_what_was_found_and_expected(three_class_checkpoint: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has shape \(192,\), expected \(384,\)"):
        load_image_model("vit_small_patch16_224", checkpoint=three_class_checkpoint)


def test_a_mismatch_with_a_hugging_face_folder_is_listed_alike(
    hugging_face_folder: Path, tmp_path: Path
) -> None:
    state = read_checkpoint(hugging_face_folder / "model.safetensors")
    state |= {"classifier.weight": torch.ones(3, 16), "surplus": torch.ones(1)}
    state.pop("classifier.bias")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        ModelLoadError,
        match=r"classifier\.weight has shape \(3, 16\), expected \(2, 16\); "
        r"missing: classifier\.bias; unexpected: surplus",
    ):
        load_image_model(str(hugging_face_folder), checkpoint=tmp_path / "w.safetensors")


def test_a_mismatch_leaves_the_model_as_it_was() -> None:
    model = torch.nn.Linear(2, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelLoadError, match=r"missing: bias; unexpected: biases"):
        load_weights(model, {"weight": torch.ones(1, 2), "biases": torch.ones(1)}, "w.pt")
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_an_unknown_name_brings_the_nearest_ones() -> None:
    with pytest.raises(ModelLoadError, match="the nearest: deit_tiny_"):
        load_image_model("deit_tiny")


@pytest.mark.parametrize("load", [load_image_model, load_text_model])
def test_a_folder_without_a_model_is_named(tmp_path: Path, load) -> None:
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="not valid JSON"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such type"}))
    with pytest.raises(ModelLoadError, match=r"cannot load the .* save_pretrained"):
        load(str(tmp_path))


def test_a_text_model_is_loaded_in_float32(shared: Path) -> None:
    loaded = load_text_model(str(shared / "models" / "bert_movies"))
    assert loaded.class_names == ("NEG", "POS")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["bundled/sentiment", "bundled/scene"])
def test_a_bundled_name_that_is_no_image_model_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(
        ModelLoadError, match="is no bundled image model, expected 'bundled/scenes'"
    ):
        load_image_model(name)


def test_the_bundled_image_model_is_no_text_model() -> None:
    with pytest.raises(ModelLoadError, match="is no bundled text model, expected 'bundled/sent"):
        load_text_model("bundled/scenes")


State = dict[str, Tensor]
FAULTS: dict[str, tuple[Callable[[State, str], object], str]] = {
    "missing": (lambda state, key: state.pop(key), "missing: {key}"),
    "extra": (lambda state, _: state.update(surplus=torch.ones(1)), "unexpected: surplus"),
    "misshapen": (lambda state, key: state.update({key: torch.ones(3, 3)}), "{key} has shape"),
    "integers": (
        lambda state, key: state.update({key: state[key].to(torch.int32)}),
        "{key} is int32, expected float32",
    ),
    "complex": (
        lambda state, key: state.update({key: state[key].to(torch.complex64)}),
        "{key} is complex64, expected float32",
    ),
}


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    model, tokenizer = examples.sentiment_classifier()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    model = timm.create_model("test_vit", num_classes=3)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("fixture", "key"),
    [
        ("text_folder", "classifier.weight"),
        ("hugging_face_folder", "classifier.weight"),
        ("timm_folder", "head.weight"),
    ],
)
def test_no_folder_is_loaded_with_other_weights_than_its_own(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, key: str, fault: str
) -> None:
    if fault == "complex" and Version(safetensors.__version__) < Version("0.7"):
        pytest.skip("safetensors before 0.7 cannot save complex numbers")
    source = request.getfixturevalue(fixture)
    load = load_text_model if fixture == "text_folder" else load_image_model
    folder = shutil.copytree(source, tmp_path / "model")
    load(str(folder))
    state = load_file(folder / "model.safetensors")
    spoil, message = FAULTS[fault]
    spoil(state, key)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=message.format(key=key)) as refused:
        load(str(folder))
    assert "save the whole model there again" in str(refused.value)


def test_a_head_of_another_size_than_the_folder_says_is_refused(
    timm_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(timm_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config.setdefault("model_args", {})["num_classes"] = 5  # timm 1.0.20 writes none
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"head\.weight has shape \(3, \d+\), expected \(5, "):
        load_image_model(str(folder))


def test_weights_in_several_files_are_put_together(text_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(text_folder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    model = AutoModelForSequenceClassification.from_pretrained(text_folder)
    model.save_pretrained(folder, max_shard_size="2MB")
    assert not (folder / "model.safetensors").exists()
    expected = load_text_model(str(text_folder)).model.state_dict()
    loaded = load_text_model(str(folder)).model.state_dict()
    torch.testing.assert_close(loaded, expected, rtol=0, atol=0)
    index = folder / "model.safetensors.index.json"
    for content, message in [
        ({"weight_map": {"classifier.weight": "../elsewhere.safetensors"}}, "a file beside it"),
        (
            {"weight_map": {"classifier.weight": "gone.safetensors"}},
            "found no checkpoint at .*gone",
        ),
        ({"weight_map": {}}, "has no weight_map"),
        ([], "holds a list, expected an object"),
    ]:
        index.write_text(json.dumps(content))
        with pytest.raises(ModelLoadError, match=message):
            load_text_model(str(folder))


def test_the_averaged_weights_are_used_and_that_is_said(tmp_path: Path) -> None:
    plain, averaged = {"weight": torch.zeros(1)}, {"module.weight": torch.ones(1)}
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"w\.pth holds .*: those under state_dict_ema are used"):
        state = read_checkpoint(tmp_path / "w.pth")
    assert state == {"weight": torch.ones(1)}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_what_wrappers_put_before_names_is_taken_away(tmp_path: Path, prefix: str) -> None:
    # As timm does, without importing it for the folders of others.
    state = {f"{prefix}{name}": torch.ones(1) for name in ("weight", "my.module.bias")}
    torch.save(state, tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth")
    assert list(found) == ["weight", "my.module.bias"]
    if Version(timm.__version__) >= Version("1.0.30"):  # others leave what a compiled one wraps
        assert list(timm.models.clean_state_dict(state)) == list(found)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool])
def test_a_checkpoint_of_other_kinds_of_numbers_is_refused(dtype: torch.dtype) -> None:
    model = torch.nn.Linear(1, 1)
    state = {"weight": torch.ones(1, 1, dtype=dtype), "bias": torch.ones(1)}
    with pytest.raises(ModelLoadError, match=r"weight is \w+, expected float32"):
        load_weights(model, state, "w.pt")
    load_weights(model, {"weight": torch.ones(1, 1).half(), "bias": torch.ones(1).double()}, "w")


def _empty(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def _foreign(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["captum"] = 10**6
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_empty, "found no tokenizer with words"),
        (_foreign, "makes tokens up to 1000000, but the model knows"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot read the tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "cannot read the tokenizer"),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
            "cannot read the tokenizer",
        ),
    ],
)
def test_a_folder_without_a_tokenizer_that_can_be_read_is_refused(
    text_folder: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = shutil.copytree(text_folder, tmp_path / "model")
    spoil(folder)
    with pytest.raises(ModelLoadError, match=message) as refused:
        load_text_model(str(folder))
    assert "tokenizer.save_pretrained" in str(refused.value)


CODE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification
Path({sprung!r}).touch()
class Config(BertConfig):
    model_type = "of_a_stranger"
class Model(BertForSequenceClassification):
    config_class = Config
"""


def test_code_in_a_model_folder_is_run_only_where_that_was_asked_for(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "cache")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("a question on standard input"))
    folder = shutil.copytree(text_folder, tmp_path / "model")
    sprung = tmp_path / "sprung"
    (folder / "stranger.py").write_text(CODE.format(sprung=str(sprung)))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "stranger.Config",
        "AutoModelForSequenceClassification": "stranger.Model",
    }
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "of_a_stranger"}))
    with pytest.raises(ModelLoadError, match=r"custom code.* give --trust-remote-code"):
        load_text_model(str(folder))
    assert not sprung.exists()
    assert load_text_model(str(folder), trust_remote_code=True).class_names
    assert sprung.exists()


def test_a_pickle_in_a_model_folder_is_not_run(text_folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    folder = shutil.copytree(text_folder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"cannot read the checkpoint .*pytorch_model\.bin"):
        load_text_model(str(folder))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": ["test_vit"]},
        {"architecture": "no such model"},
        {"architecture": "test_vit", "label_names": 5},
        {"architecture": "test_vit", "num_classes": "many"},
        {"architecture": "test_vit", "pretrained_cfg": {"input_size": "large"}},
        {"architecture": "test_vit", "pretrained_cfg": {"mean": 5}},
        {"model_type": "vit", "num_labels": "many", "id2label": None},
        {"model_type": "vit", "hidden_size": -1},
        {"model_type": "vit", "id2label": [1]},
    ],
)
def test_a_damaged_configuration_is_named(
    timm_folder: Path, hugging_face_folder: Path, tmp_path: Path, config: dict
) -> None:
    source = timm_folder if "architecture" in config else hugging_face_folder
    folder = shutil.copytree(source, tmp_path / "model")
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(saved | config))
    with pytest.raises(ModelLoadError, match=str(folder)):
        load_image_model(str(folder))


def test_a_class_without_a_name_is_told(text_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(text_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "7": "b"}}))
    with pytest.raises(ModelLoadError, match="names no class 1, expected id2label for all 2"):
        load_text_model(str(folder))
