"""TransformerAttribution: what it computes, on every kind of model that it supports.

Everything is in float64, where 1e-9 (of the largest entry) leaves room for rounding only.  Maps
are compared without the identity that C contains: an entry of 1 would hide errors in the others.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients
from torch import Tensor, nn
from transformers import BertConfig, BertForTokenClassification

from captum_transformer_lrp import Explanation, TransformerAttribution

EXACT = 1e-9


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def product_of_blocks(explanation: Explanation, start_layer: int = 0) -> Tensor:
    """C of eq. 14, multiplied out."""
    product: Tensor | None = None
    for maps in explanation.attentions[start_layer:]:
        block = torch.eye(maps.weighted.shape[-1]).double() + maps.weighted.mean(1)
        product = block if product is None else block @ product
    assert product is not None
    return product


# -- eq. 13 and 14 ------------------------------------------------------------------------------


@pytest.mark.parametrize("start_layer", [0, 1, 2])
def test_rollout_by_a_backward_pass_is_the_product_of_matrices(case: Any, start_layer: int) -> None:
    explanation = case.explain(granularity="token", start_layer=start_layer)
    product = product_of_blocks(explanation, start_layer)
    identity = torch.eye(product.shape[-1]).double()
    expected = case.readout @ (product - identity)
    assert relative_error(explanation.attributions, expected) < EXACT
    whole = case.explain(granularity="token", start_layer=start_layer, keep_identity=True)
    assert relative_error(whole.attributions - case.readout, expected) < EXACT


def test_the_matrix_is_the_product_of_matrices(case: Any) -> None:
    explanation = case.explain(granularity="matrix")
    expected = product_of_blocks(explanation)
    identity = torch.eye(expected.shape[-1]).double()
    assert relative_error(explanation.attributions - identity, expected - identity) < EXACT


def test_rows_can_be_normalised_before_the_product(case: Any) -> None:
    explanation = case.explain(granularity="matrix", row_normalize=True)
    product: Tensor | None = None
    unmoved = torch.ones(1).double()
    for maps in explanation.attentions:
        block = torch.eye(maps.weighted.shape[-1]).double() + maps.weighted.mean(1)
        unmoved = unmoved / block.sum(-1)
        block = block / block.sum(-1, keepdim=True)
        product = block if product is None else block @ product
    assert product is not None
    identity = torch.eye(product.shape[-1]).double()
    assert relative_error(explanation.attributions - identity, product - identity) < EXACT
    token = case.attribute(granularity="token", row_normalize=True)
    expected = case.readout @ (product - torch.diag_embed(unmoved))
    assert relative_error(token, expected) < EXACT
    whole = case.attribute(granularity="token", row_normalize=True, keep_identity=True)
    assert relative_error(whole, case.readout @ product) < EXACT


def test_the_weighted_map_is_the_positive_part_of_gradient_times_relevance(case: Any) -> None:
    for maps in case.explain().attentions:
        assert torch.equal(maps.weighted, (maps.gradient * maps.relevance).clamp(min=0))
        assert bool((maps.gradient * maps.relevance < 0).any())


def test_attention_rows_are_distributions(case: Any) -> None:
    for maps in case.explain().attentions:
        assert float((maps.attention.sum(-1) - 1).abs().max()) < EXACT


# -- eq. 3 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0, 3, [4, 1, 2], None])
def test_relevance_is_conserved(case: Any, target: Any) -> None:
    total = case.explain(target).total
    assert total.shape == (3,)
    assert float((total - 1).abs().max()) < EXACT


def test_the_total_is_the_relevance_of_inputs_and_parameters(case: Any) -> None:
    explanation = case.explain()
    (relevance,) = explanation.relevances
    parts = [relevance.flatten(1).sum(1), *explanation.absorbed.values()]
    assert float((torch.stack(parts).sum(0) - explanation.total).abs().max()) < EXACT


def test_parameters_that_absorb_relevance_are_named(case: Any) -> None:
    absorbed = case.explain().absorbed
    for name in case.absorbing:
        assert name in absorbed, f"{name} not among {sorted(absorbed)}"
        assert absorbed[name].shape == (3,)
        assert bool(absorbed[name].abs().gt(0).all())
    known = {name for name, _ in case.model.named_parameters()}
    assert set(case.absorbing) <= known


# -- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["input", "token", "matrix"])
def test_a_batch_is_its_examples_one_by_one(case: Any, granularity: str) -> None:
    targets = [1, 4, 0]
    batch = case.attribute(targets, granularity=granularity)
    singles = torch.cat(
        [case.example(i).attribute(t, granularity=granularity) for i, t in enumerate(targets)]
    )
    for row, single in zip(batch, singles, strict=True):
        assert relative_error(row, single) < EXACT


def test_relevances_of_a_batch_are_those_of_its_examples(case: Any) -> None:
    batch = case.explain([1, 4, 0])
    for index, target in enumerate([1, 4, 0]):
        single = case.example(index).explain(target)
        for maps, alone in zip(batch.attentions, single.attentions, strict=True):
            assert relative_error(maps.gradient[index : index + 1], alone.gradient) < EXACT
            assert relative_error(maps.relevance[index : index + 1], alone.relevance) < EXACT
        assert set(single.absorbed) <= set(batch.absorbed)
        for name, amount in single.absorbed.items():
            assert abs(float(batch.absorbed[name][index] - amount[0])) < EXACT


def test_padding_gets_exactly_zero(bert_case: Any) -> None:
    padded = bert_case.kwargs["attention_mask"] == 0
    assert not bert_case.attribute()[padded].any()
    assert not bert_case.attribute(granularity="token")[padded].any()
    relevance = bert_case.explain().relevances[0]
    assert not relevance[padded].any()


def test_padding_changes_nothing(bert_case: Any) -> None:
    """A sentence alone, without padding, gets what it gets in a padded batch."""
    batch = bert_case.attribute(granularity="token")
    for index, length in enumerate(bert_case.kwargs["attention_mask"].sum(1).tolist()):
        alone = bert_case.attribution.attribute(
            bert_case.inputs[index : index + 1, :length], 1, granularity="token"
        )
        assert relative_error(batch[index : index + 1, :length], alone) < EXACT


# -- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [[2, 2, 2], torch.tensor(2), torch.tensor([2]), torch.tensor([2, 2, 2]), (2,), [(2,)] * 3, -3],
    ids=["list", "0-d tensor", "tensor of one", "tensor", "tuple", "list of tuples", "negative"],
)
def test_every_form_of_target_means_the_same(vit_case: Any, target: Any) -> None:
    assert torch.equal(vit_case.attribute(target), vit_case.attribute(2))


def test_a_list_explains_each_example_by_its_own_target(vit_case: Any) -> None:
    mixed = vit_case.attribute([0, 3, 1])
    for index, target in enumerate([0, 3, 1]):
        assert relative_error(mixed[index], vit_case.attribute(target)[index]) < EXACT


def test_no_target_explains_the_predicted_classes(case: Any) -> None:
    predicted = case.logits().argmax(1)
    assert torch.equal(case.attribute(None), case.attribute(predicted))
    assert torch.equal(case.explain(None).target, predicted)


def test_different_targets_have_different_maps(case: Any) -> None:
    one, other = case.attribute(0, granularity="token"), case.attribute(1, granularity="token")
    assert relative_error(one, other) > 0.01


def token_classifier() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=4,
    )
    return BertForTokenClassification(config).double().eval()


def test_a_tuple_picks_a_value_of_an_output_of_three_dimensions() -> None:
    model, ids = token_classifier(), torch.tensor([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]])
    attribution = TransformerAttribution(model)
    together = attribution.attribute(ids, (2, 3))
    assert torch.equal(together, attribution.attribute(ids, [(2, 3), (2, 3)]))

    def at_position_2(token_ids: Tensor) -> Tensor:
        return model(token_ids).logits[:, 2]

    expected = TransformerAttribution(at_position_2).attribute(ids, 3)
    assert relative_error(together, expected) < EXACT
    whole = {"granularity": "token", "keep_identity": True}
    mixed = attribution.attribute(ids, [(2, 3), (5, 0)], **whole)
    row = attribution.attribute(ids, (5, 0), **whole)[1]
    assert relative_error(mixed[1], row) < EXACT
    assert int(mixed[0].argmax()) == 2  # the readout is the position that was asked for
    assert int(mixed[1].argmax()) == 5


def test_one_value_for_each_example_needs_no_target(vit_case: Any) -> None:
    def second_logit(images: Tensor) -> Tensor:
        return vit_case.model(images)[:, 1]

    found = TransformerAttribution(second_logit).attribute(vit_case.inputs)
    assert relative_error(found, vit_case.attribute(1)) < EXACT


@pytest.mark.parametrize("granularity", ["input", "token", "matrix"])
def test_several_targets_of_one_forward_pass_are_those_of_several(
    case: Any, granularity: str
) -> None:
    targets = [0, [3, 1, 2], None]
    found = case.attribution.attribute_targets(
        case.inputs, targets, case.kwargs, granularity=granularity
    )
    assert len(found) == len(targets)
    for one, target in zip(found, targets, strict=True):
        # Together they are larger matrix products, which round their sums in another order.
        alone = case.attribute(target, granularity=granularity)
        assert relative_error(one, alone) < EXACT


def test_several_targets_take_one_forward_pass(vit_case: Any) -> None:
    passes = 0

    def counting(images: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return vit_case.model(images)

    TransformerAttribution(counting).attribute_targets(vit_case.inputs, [0, 1, 2])
    assert passes == 1


# -- shapes -------------------------------------------------------------------------------------


def test_shapes_of_every_granularity(case: Any) -> None:
    tokens = len(case.readout)
    assert case.attribute().shape == case.inputs.shape
    assert case.attribute(granularity="token").shape == (3, tokens)
    assert case.attribute(granularity="matrix").shape == (3, tokens, tokens)


@pytest.mark.parametrize("granularity", ["input", "token", "matrix"])
def test_attributions_are_plain_finite_non_negative_numbers(case: Any, granularity: str) -> None:
    found = case.attribute(granularity=granularity)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert bool(found.isfinite().all())
    assert bool((found >= 0).all())


def test_attributions_fit_where_those_of_integrated_gradients_do(vit_case: Any) -> None:
    other = IntegratedGradients(vit_case.model).attribute(vit_case.inputs, target=1, n_steps=2)
    assert vit_case.attribute().shape == other.shape
    assert vit_case.attribute().dtype == other.dtype


@pytest.mark.parametrize("options", [{}, {"start_layer": 1}, {"row_normalize": True}], ids=str)
def test_pixels_are_the_upsampled_grid_of_patches(image_case: Any, options: dict[str, Any]) -> None:
    tokens = image_case.attribute(granularity="token", **options)[:, 1:]
    side = round(tokens.shape[1] ** 0.5)
    grid = tokens.reshape(3, 1, side, side)
    expected = F.interpolate(grid, size=(32, 32), mode="bilinear", align_corners=False)
    found = image_case.attribute(**options)
    assert relative_error(found.sum(1, keepdim=True), expected) < EXACT
    for channel in range(3):  # evenly over the channels
        assert torch.equal(found[:, channel], found[:, 0])


def test_embeddings_sum_to_the_tokens(bert_case: Any) -> None:
    model = bert_case.model
    embeddings = model.get_input_embeddings()(bert_case.inputs).detach()
    mask = bert_case.kwargs["attention_mask"]

    def from_embeddings(embedded: Tensor, attention_mask: Tensor) -> Any:
        return model(inputs_embeds=embedded, attention_mask=attention_mask)

    found = TransformerAttribution(from_embeddings).attribute(embeddings, 1, mask)
    assert found.shape == embeddings.shape
    assert relative_error(found.sum(-1), bert_case.attribute()) < EXACT


# -- what a model takes and returns -------------------------------------------------------------


def test_a_tuple_of_inputs_gets_a_tuple_of_attributions(vit_case: Any) -> None:
    (found,) = vit_case.attribution.attribute((vit_case.inputs,), 1)
    assert torch.equal(found, vit_case.attribute(1))


class TwoViews(nn.Module):
    """Tokens of two kinds in one sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 16), nn.Linear(9, 16)
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        cls = self.cls.expand(len(left), -1, -1)
        x = torch.cat([cls, self.left(left), scale * self.right(right)], 1)
        return self.head(self.layer(x)[:, 0])


def test_every_input_of_a_tuple_gets_the_mass_of_its_own_tokens() -> None:
    torch.manual_seed(0)
    model = TwoViews().double().eval()
    inputs = (torch.randn(2, 3, 6).double(), torch.randn(2, 4, 9).double())
    attribution = TransformerAttribution(model)
    left, right = attribution.attribute(inputs, 1)
    tokens = attribution.attribute(inputs, 1, granularity="token")
    assert relative_error(left.sum(-1), tokens[:, 1:4]) < EXACT
    assert relative_error(right.sum(-1), tokens[:, 4:]) < EXACT
    explanation = attribution.explain(inputs, 1)
    assert [r.shape for r in explanation.relevances] == [x.shape for x in inputs]
    assert float((explanation.total - 1).abs().max()) < EXACT


@pytest.mark.parametrize(
    "extra", [0.5, (0.5,), {"scale": 0.5}], ids=["bare", "tuple", "dictionary"]
)
def test_further_arguments_reach_the_model(extra: Any) -> None:
    torch.manual_seed(0)
    model = TwoViews().double().eval()
    inputs = (torch.randn(2, 3, 6).double(), torch.randn(2, 4, 9).double())
    with torch.no_grad():
        expected = model(*inputs, scale=0.5)
    explanation = TransformerAttribution(model).explain(inputs, 1, extra)
    assert torch.allclose(explanation.output, expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: (logits, torch.zeros(1)),
        lambda logits: [logits],
        lambda logits: {"logits": logits, "loss": None},
        lambda logits: (None, logits),
    ],
    ids=["tuple", "list", "dictionary", "tuple with None"],
)
def test_logits_are_found_in_what_the_model_returns(vit_case: Any, wrap: Any) -> None:
    def forward(images: Tensor) -> Any:
        return wrap(vit_case.model(images))

    found = TransformerAttribution(forward).attribute(vit_case.inputs, 1)
    assert relative_error(found, vit_case.attribute(1)) < EXACT


def test_a_tuple_is_what_hugging_face_returns_on_request(bert_case: Any) -> None:
    kwargs = {**bert_case.kwargs, "return_dict": False}
    found = bert_case.attribution.attribute(bert_case.inputs, 1, kwargs)
    assert relative_error(found, bert_case.attribute(1)) < EXACT


# -- what explain returns -----------------------------------------------------------------------


ATTENTION_NAMES = {
    "timm ViT": "blocks.{}.attn",
    "timm ViT, mean-pooled": "blocks.{}.attn",
    "Hugging Face ViT": "vit.",
    "torchvision ViT": "encoder.layers.encoder_layer_{}.self_attention",
    "hand-written ViT, convolution": "blocks.{}",
    "hand-written ViT, linear": "blocks.{}",
    "BERT": "bert.encoder.layer.{}.attention.self",
}


def test_attentions_are_named_in_the_order_of_the_forward_pass(case: Any) -> None:
    names = [maps.name for maps in case.explain().attentions]
    modules = dict(case.model.named_modules())
    assert len(names) == len(set(names)) == 3
    assert all(name in modules for name in names)
    pattern = ATTENTION_NAMES[case.name]
    if "{}" in pattern:
        assert names == [pattern.format(block) for block in range(3)]
    else:
        assert names == sorted(names)
        assert all(name.startswith(pattern) for name in names)


def test_every_map_has_one_matrix_for_each_example_and_head(case: Any) -> None:
    tokens = len(case.readout)
    for maps in case.explain().attentions:
        for one in (maps.attention, maps.gradient, maps.relevance, maps.weighted):
            assert one.shape == (3, 3, tokens, tokens)
            assert not one.requires_grad


@pytest.mark.parametrize("granularity", ["input", "token", "matrix"])
def test_attribute_is_a_view_of_explain(case: Any, granularity: str) -> None:
    options = {"granularity": granularity, "start_layer": 1}
    explanation = case.explain([0, 1, 2], **options)
    # Where the books are kept, no row is left out, and sums are rounded in another order.
    expected = case.attribute([0, 1, 2], **options)
    assert relative_error(explanation.attributions, expected) < EXACT
    assert explanation.target == [0, 1, 2]


def test_watching_does_not_change_the_logits(case: Any) -> None:
    assert relative_error(case.explain().output, case.logits()) < EXACT
    assert not case.explain().output.requires_grad


def test_relevance_of_the_inputs_is_shaped_as_they_are(case: Any) -> None:
    (relevance,) = case.explain().relevances
    if case.is_image:
        assert relevance.shape == case.inputs.shape
    else:  # that of the embeddings
        assert relevance.shape == (*case.inputs.shape, 24)


# -- where it works -----------------------------------------------------------------------------


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(case: Any, context: Any) -> None:
    expected = case.attribute()
    with context():
        found = case.attribute()
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected)


def test_inputs_made_in_inference_mode_are_explained(vit_case: Any) -> None:
    with torch.inference_mode():
        images = vit_case.inputs.clone()
    found = vit_case.attribution.attribute(images, 1)
    assert torch.equal(found, vit_case.attribute(1))


def test_autocast_does_not_lower_the_precision_of_an_explanation(vit_case: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = vit_case.attribute()
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found, vit_case.attribute())


def test_frozen_parameters_are_no_hindrance(vit_case: Any) -> None:
    expected = vit_case.attribute()
    vit_case.model.requires_grad_(False)
    try:
        assert torch.equal(vit_case.attribute(), expected)
    finally:
        vit_case.model.requires_grad_(True)


def test_explanations_are_reproducible(case: Any) -> None:
    assert torch.equal(case.attribute(), case.attribute())


# -- options that make no sense -----------------------------------------------------------------


@pytest.mark.parametrize("start_layer", [-1, 3, 100])
def test_start_layer_must_be_an_attention_of_the_model(vit_case: Any, start_layer: int) -> None:
    with pytest.raises(ValueError, match=r"start_layer must be one of the model's 3 attentions"):
        vit_case.attribute(start_layer=start_layer)


def test_granularity_must_be_known(vit_case: Any) -> None:
    with pytest.raises(ValueError, match=r"granularity must be one of .*input.*token.*matrix"):
        vit_case.attribute(granularity="pixel")
    with pytest.raises(ValueError, match=r"granularity must be one of"):
        vit_case.explain(granularity="pixel")
