"""Agreement with numbers that the paper authors' published implementation computed in float64.

They explained one example and one target at a time; here every example and every target of a file
is explained in one batch.

Tolerances, relative to the largest entry of the compared tensor: gradients have nothing between
them and the authors' but rounding (1e-9).  The authors add 1e-9 to every denominator whatever its
sign, which stays visible under our stabiliser (1e-4 for R, 1e-5 for maps) and vanishes with theirs
(1e-5 and 1e-6).  [CLS] columns are left out of maps: C contains the identity, so a [CLS] entry is
about 1 and would hide errors in the others, which may be 1000 times smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from captum_transformer_lrp import Explanation, TransformerAttribution
from captum_transformer_lrp.rules import AdditiveStabilizer

FOLDER = Path(__file__).parent / "reference"
THE_AUTHORS = AdditiveStabilizer(1e-9)
STABILIZERS = {"default stabiliser": None, "the authors' stabiliser": THE_AUTHORS}
TOLERANCES = {None: (1e-4, 1e-5), THE_AUTHORS: (1e-5, 1e-6)}
"""Of R, and of maps."""


@dataclass
class Reference:
    """One file of reference numbers; cases are its (example, target) pairs."""

    numbers: dict[str, np.ndarray]

    @property
    def config(self) -> list[int]:
        return [int(value) for value in self.numbers["config"]]

    @property
    def cases(self) -> list[tuple[int, int]]:
        examples = len(self.numbers["ex_count"])
        return [(i, int(t)) for t in self.numbers["targets"] for i in range(examples)]

    @property
    def targets(self) -> list[int]:
        return [target for _, target in self.cases]

    def batch(self, name: str) -> Tensor:
        """An input, once for each case."""
        return torch.tensor(np.stack([self.numbers[name][i] for i, _ in self.cases]))

    def results(self, name: str) -> Tensor:
        """A result for each case, without the authors' batch dimension of 1."""
        found = [torch.tensor(self.numbers[f"ex{i}/t{t}/{name}"]) for i, t in self.cases]
        return torch.stack([one.squeeze(0) if one.shape[0] == 1 else one for one in found])

    def load_into(self, model: nn.Module) -> None:
        state = {
            name.removeprefix("state/"): torch.tensor(value)
            for name, value in self.numbers.items()
            if name.startswith("state/")
        }
        missing = model.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys
        assert not set(missing.missing_keys) & {name for name, _ in model.named_parameters()}


def load(name: str, inputs: str) -> Reference:
    with np.load(FOLDER / f"{name}_reference.npz") as file:
        numbers = dict(file)
    numbers["ex_count"] = np.arange(len(numbers[inputs]))
    return Reference(numbers)


def relative_errors(found: Tensor, expected: Tensor) -> list[float]:
    """For each case the largest error relative to the largest entry expected for that case."""
    assert found.shape == expected.shape
    return [
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(found, expected, strict=True)
    ]


# -- ViT ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit() -> Reference:
    return load("vit", "x")


@pytest.fixture(scope="module")
def vit_model(vit: Reference) -> VisionTransformer:
    image, patch, width, depth, heads, classes = vit.config
    model = VisionTransformer(
        img_size=image,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=classes,
    )
    vit.load_into(model)
    *of_blocks, of_norm = (float(value) for value in vit.numbers["norm_eps"])
    for block, epsilon in zip(model.blocks, of_blocks, strict=True):
        block.norm1.eps = block.norm2.eps = epsilon
    model.norm.eps = of_norm
    return model.double().eval()


@dataclass
class VitExplained:
    """ViT, every case explained."""

    attribution: TransformerAttribution
    images: Tensor
    explanation: Explanation
    relevance_tolerance: float
    map_tolerance: float


@pytest.fixture(scope="module", params=STABILIZERS.values(), ids=STABILIZERS.keys())
def vit_explained(
    request: pytest.FixtureRequest, vit: Reference, vit_model: VisionTransformer
) -> VitExplained:
    attribution = TransformerAttribution(vit_model, stabilizer=request.param, epsilon=0)
    images = vit.batch("x").double()
    explanation = attribution.explain(images, vit.targets, granularity="token")
    return VitExplained(attribution, images, explanation, *TOLERANCES[request.param])


def test_vit_logits_and_attention(vit: Reference, vit_explained: VitExplained) -> None:
    explanation = vit_explained.explanation
    assert max(relative_errors(explanation.output, vit.results("logits"))) < 1e-9
    for block, maps in enumerate(explanation.attentions):
        expected = vit.results(f"attention/block{block}")
        assert max(relative_errors(maps.attention, expected)) < 1e-9


def test_vit_gradient_of_every_block(vit: Reference, vit_explained: VitExplained) -> None:
    explanation = vit_explained.explanation
    assert len(explanation.attentions) == vit.config[3]
    for block, maps in enumerate(explanation.attentions):
        expected = vit.results(f"gradient/block{block}")
        assert max(relative_errors(maps.gradient, expected)) < 1e-9


def test_vit_relevance_of_every_block(vit: Reference, vit_explained: VitExplained) -> None:
    explanation = vit_explained.explanation
    for block, maps in enumerate(explanation.attentions):
        expected = vit.results(f"relevance/block{block}")
        assert max(relative_errors(maps.relevance, expected)) < vit_explained.relevance_tolerance


def test_vit_transformer_attribution(vit: Reference, vit_explained: VitExplained) -> None:
    explanation = vit_explained.explanation
    expected = vit.results("transformer_attribution")
    assert (
        max(relative_errors(explanation.attributions[:, 1:], expected))
        < vit_explained.map_tolerance
    )


def test_vit_transformer_attribution_from_block_1(
    vit: Reference, vit_explained: VitExplained
) -> None:
    found = vit_explained.attribution.attribute(
        vit_explained.images, vit.targets, granularity="token", start_layer=1
    )
    expected = vit.results("transformer_attribution_start1")
    assert max(relative_errors(found[:, 1:], expected)) < vit_explained.map_tolerance


# -- BERT ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert() -> Reference:
    return load("bert", "input_ids")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def bert_model(request: pytest.FixtureRequest, bert: Reference) -> BertForSequenceClassification:
    vocabulary, width, depth, heads, intermediate, positions, labels = bert.config
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=intermediate,
            max_position_embeddings=positions,
            num_labels=labels,
            attn_implementation=request.param,
        )
    )
    bert.load_into(model)
    return model.double().eval()


@dataclass
class BertCase:
    """BERT, explained by token ids or by their embeddings."""

    attribution: TransformerAttribution
    inputs: Tensor
    mask: Tensor
    targets: list[int]
    relevance_tolerance: float
    map_tolerance: float

    def attribute(self, **options: Any) -> Tensor:
        found = self.attribution.attribute(
            self.inputs, self.targets, {"attention_mask": self.mask}, **options
        )
        assert isinstance(found, Tensor)
        return found

    def explain(self) -> Explanation:
        return self.attribution.explain(
            self.inputs, self.targets, {"attention_mask": self.mask}, granularity="token"
        )


@pytest.fixture(scope="module", params=["input_ids", "inputs_embeds"])
def entrance(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(
    scope="module",
    params=STABILIZERS.values(),
    ids=STABILIZERS.keys(),
)
def bert_case(
    request: pytest.FixtureRequest,
    bert: Reference,
    bert_model: BertForSequenceClassification,
    entrance: str,
) -> BertCase:
    ids, mask = bert.batch("input_ids"), bert.batch("attention_mask")

    def from_embeddings(embeddings: Tensor, attention_mask: Tensor) -> Any:
        return bert_model(inputs_embeds=embeddings, attention_mask=attention_mask)

    by_ids = entrance == "input_ids"
    return BertCase(
        TransformerAttribution(
            bert_model if by_ids else from_embeddings, stabilizer=request.param, epsilon=0
        ),
        ids if by_ids else bert_model.get_input_embeddings()(ids).detach(),
        mask,
        bert.targets,
        *TOLERANCES[request.param],
    )


def test_bert_gradient_of_every_block(bert: Reference, bert_case: BertCase) -> None:
    explanation = bert_case.explain()
    assert max(relative_errors(explanation.output, bert.results("logits"))) < 1e-9
    assert len(explanation.attentions) == bert.config[2]
    for block, maps in enumerate(explanation.attentions):
        expected = bert.results(f"gradient/block{block}")
        assert max(relative_errors(maps.gradient, expected)) < 1e-9


def test_bert_relevance_of_every_block(bert: Reference, bert_case: BertCase) -> None:
    for block, maps in enumerate(bert_case.explain().attentions):
        expected = bert.results(f"relevance/block{block}")
        assert max(relative_errors(maps.relevance, expected)) < bert_case.relevance_tolerance


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "transformer_attribution"),
        ({"row_normalize": True}, "transformer_attribution_row_normalised"),
    ],
    ids=["as printed", "rows normalised"],
)
def test_bert_transformer_attribution(
    bert: Reference, bert_case: BertCase, options: dict[str, Any], name: str
) -> None:
    found = bert_case.attribute(granularity="token", **options)[:, 1:]
    expected = bert.results(name)[:, 1:]
    assert max(relative_errors(found, expected)) < bert_case.map_tolerance


def test_bert_matrix(bert: Reference, bert_case: BertCase) -> None:
    found = bert_case.attribute(granularity="matrix")
    expected = bert.results("transformer_attribution_matrix")
    identity = torch.eye(expected.shape[-1], dtype=torch.float64)
    errors = relative_errors(found - identity, expected - identity)
    assert max(errors) < bert_case.map_tolerance


def test_bert_attributions_of_the_input_sum_to_those_of_the_tokens(bert_case: BertCase) -> None:
    tokens = bert_case.attribute(granularity="token")
    inputs = bert_case.attribute()
    assert inputs.shape == bert_case.inputs.shape
    summed = inputs.sum(-1) if inputs.dim() == 3 else inputs
    assert max(relative_errors(summed[:, 1:], tokens[:, 1:])) < 1e-12


@pytest.mark.parametrize("row_normalize", [False, True])
def test_padding_of_bert_gets_exactly_zero(bert_case: BertCase, row_normalize: bool) -> None:
    padded = bert_case.mask == 0
    assert bool(padded.any())
    tokens = bert_case.attribute(granularity="token", row_normalize=row_normalize)
    inputs = bert_case.attribute(row_normalize=row_normalize)
    assert not tokens[padded].any()
    assert not inputs[padded].any()
    assert bool((tokens[~padded] > 0).any())
