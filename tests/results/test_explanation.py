"""What `explain` returns is shown and written as every other result is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from captum_transformer_lrp import Explanation, TransformerAttribution, examples


@pytest.fixture(scope="module")
def images() -> Explanation:
    pixels = torch.stack([examples.preprocess(scene.image) for scene in examples.scenes()[:2]])
    return TransformerAttribution(examples.scene_classifier()).explain(pixels)


@pytest.fixture(scope="module")
def texts() -> Explanation:
    model, tokenizer = examples.sentiment_classifier()
    batch = tokenizer(["a gorgeous, witty film", "dull"], padding=True, return_tensors="pt")
    mask = {"attention_mask": batch["attention_mask"]}
    attribution = TransformerAttribution(model)
    return attribution.explain(batch["input_ids"], target=1, additional_forward_args=mask)


def test_the_largest_attributions_and_where_they_are(
    images: Explanation, texts: Explanation
) -> None:
    assert isinstance(images.attributions, torch.Tensor)
    assert isinstance(texts.attributions, torch.Tensor)
    (((row, column), value),) = images.topk(1, example=1)
    summed = images.attributions[1].sum(0)
    assert value == summed.max() == summed[row, column]
    found = texts.topk(99)
    assert [one for _, one in found] == sorted(texts.attributions[0].tolist(), reverse=True)


def test_files_hold_everything_by_name(images: Explanation, tmp_path: Path) -> None:
    images.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        for maps in images.attentions:
            for kind in ("attention", "gradient", "relevance", "weighted"):
                np.testing.assert_array_equal(archive[f"{kind}/{maps.name}"], getattr(maps, kind))
        absorbed = sum(archive[name] for name in archive if name.startswith("absorbed/"))
        total = archive["relevances"].sum((1, 2, 3)) + absorbed
        # Σ R = 1, summed again in float32.
        np.testing.assert_allclose(total, 1, atol=1e-4)
    written = json.loads(images.to_json())
    np.testing.assert_allclose(written["attributions"], images.attributions)
    assert written["target"] == images.target.tolist()


def test_a_notebook_shows_maps_and_where_the_relevance_went(
    images: Explanation, texts: Explanation, tmp_path: Path
) -> None:
    for found, leaf in ((images, "cls_token"), (texts, "position_embeddings")):
        shown = found._repr_html_()
        assert leaf in shown
        assert "data:image/webp" in shown
        assert "http" not in shown
        assert len(repr(found)) < 100
        found.save(tmp_path / "x.html")
        found.save(tmp_path / "x.png")


def test_infinite_logits_are_null_in_json() -> None:
    found = Explanation(
        torch.ones(1, 2), torch.tensor([[1.0, -torch.inf]]), (0,), (), (torch.ones(1, 2),), {},
        torch.ones(1),
    )  # fmt: skip
    assert json.loads(found.to_json())["output"] == [[1.0, None]]
    assert json.loads(found.to_json())["target"] == [0]
