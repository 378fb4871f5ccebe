"""The bundled models and scenes are there, small, and right about what they are shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captum_transformer_lrp import examples

ASSETS = Path(examples.__file__).parent / "assets"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def scene_model():
    return examples.scene_classifier()


@pytest.fixture(scope="module")
def sentiment():
    return examples.sentiment_classifier()


def size_of(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.rglob(pattern))


def test_files_are_small():
    assert (ASSETS / "scene_classifier.safetensors").stat().st_size < 3 * MEGABYTE
    assert size_of(ASSETS / "sentiment_classifier", "*") < 4 * MEGABYTE
    assert size_of(ASSETS / "letter_chain", "*") < 0.2 * MEGABYTE
    assert size_of(ASSETS / "scenes", "*.png") < 0.4 * MEGABYTE


def test_models_are_in_float32_and_in_evaluation_mode(scene_model, sentiment):
    for model in (scene_model, sentiment[0], examples.letter_chain()[0]):
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_scene_classifier_is_a_plain_timm_model(scene_model):
    from timm.models.vision_transformer import VisionTransformer

    assert type(scene_model) is VisionTransformer
    assert scene_model.num_classes == len(scene_model.class_names) == 24


def test_weights_come_from_the_file_whatever_the_seed():
    torch.manual_seed(0)
    first = examples.scene_classifier().head.weight
    torch.manual_seed(1)
    assert torch.equal(first, examples.scene_classifier().head.weight)


def test_scenes_come_with_one_mask_per_label(scene_model):
    scenes = examples.scenes()
    assert 6 <= len(scenes) <= 12
    assert len({scene.name for scene in scenes}) == len(scenes)
    assert sum(len(scene.labels) == 2 for scene in scenes) >= 3
    assert {"elephant-zebra", "cat-dog"} <= {scene.name for scene in scenes}
    for scene in scenes:
        assert scene.image.shape == (96, 96, 3)
        assert scene.image.dtype == np.uint8
        assert tuple(scene.masks) == scene.labels
        assert set(scene.labels) <= set(scene_model.class_names)
        for mask in scene.masks.values():
            assert mask.shape == (96, 96)
            assert mask.dtype == np.bool_
            assert mask.sum() > 150


def test_masks_of_one_scene_do_not_overlap():
    for scene in examples.scenes():
        assert np.sum(list(scene.masks.values()), axis=0).max() == 1


@pytest.mark.parametrize("scene", examples.scenes(), ids=lambda scene: scene.name)
def test_labels_of_a_scene_are_the_largest_logits(scene_model, scene):
    with torch.no_grad():
        logits = scene_model(examples.preprocess(scene.image)[None])[0]
    top = logits.topk(len(scene.labels)).indices.tolist()
    assert {scene_model.class_names[index] for index in top} == set(scene.labels)


def test_scene_classifier_is_right_about_scenes_it_never_saw(scene_model):
    # The 64 scenes of one object that `sample_scenes --sheet` draws, as JPEG.
    sheet = np.array(Image.open(Path(__file__).with_name("held_out_scenes.jpg")))
    labels = json.loads(Path(__file__).with_name("held_out_scenes.json").read_text())
    images = sheet.reshape(8, 96, 8, 96, 3).transpose(0, 2, 1, 3, 4).reshape(64, 96, 96, 3)
    with torch.no_grad():
        logits = scene_model(torch.stack([examples.preprocess(image) for image in images]))
    predicted = [scene_model.class_names[index] for index in logits.argmax(1).tolist()]
    right = sum(one == other for one, other in zip(predicted, labels, strict=True))
    assert right >= 0.95 * 64


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64, 3), np.uint8), np.zeros((96, 96, 3), np.float32)]
)
def test_preprocess_says_what_it_takes(image):
    with pytest.raises(ValueError, match=r"uint8 pictures of shape \(96, 96, 3\)"):
        examples.preprocess(image)


def test_preprocess_maps_black_and_white_to_the_ends_of_the_interval():
    image = np.zeros((96, 96, 3), np.uint8)
    image[0, 0] = 255
    pixels = examples.preprocess(image)
    assert pixels.shape == (3, 96, 96)
    assert pixels[:, 0, 0].tolist() == [1, 1, 1]
    assert pixels[:, 0, 1].tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("A moving and beautiful film.", "POSITIVE"),
        ("An awful, tedious mess.", "NEGATIVE"),
        ("A smart, funny and charming comedy.", "POSITIVE"),
        ("The plot is stupid and the jokes are lame.", "NEGATIVE"),
        ("One of the best films of the year.", "POSITIVE"),
        ("A boring waste of time.", "NEGATIVE"),
        ("This movie is funny.", "POSITIVE"),
        ("This movie isn't funny.", "NEGATIVE"),
        ("I didn't enjoy this movie.", "NEGATIVE"),
        ("A wonderful story, but bad acting.", "POSITIVE"),
        ("A bad film with good actors.", "NEGATIVE"),
    ],
)
def test_plain_sentences_get_their_sentiment(sentiment, sentence, label):
    model, tokenizer = sentiment
    with torch.no_grad():
        logits = model(**tokenizer(sentence, return_tensors="pt")).logits
    assert model.config.id2label[logits.argmax().item()] == label


def test_tokenizer_pads_and_truncates_to_what_the_model_takes(sentiment):
    model, tokenizer = sentiment
    encoded = tokenizer(["good", "good " * 500], padding=True, truncation=True, return_tensors="pt")
    assert encoded["input_ids"].shape == (2, model.config.max_position_embeddings)
    assert encoded["attention_mask"][0].sum() == 3
    with torch.no_grad():
        assert model(**encoded).logits.isfinite().all()


@pytest.mark.slow
def test_sentiment_of_the_treebank_s_test_sentences(shared, sentiment):
    from captum_transformer_lrp.examples.training.sentiment_classifier import (
        read_phrases,
        sentence_accuracy,
    )

    treebank = shared / "data" / "sst" / "test.txt"
    if not treebank.is_file():
        pytest.skip(f"no sentiment treebank at {treebank}")
    model, tokenizer = sentiment
    accuracy = sentence_accuracy(model, tokenizer.backend_tokenizer, read_phrases(treebank))
    assert accuracy >= 0.78
