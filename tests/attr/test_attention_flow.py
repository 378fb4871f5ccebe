"""AttentionFlow against the definition of maximum flow, and on graphs with known answers.

Capacities are rounded to 2**-30, so a flow through E edges is right within E / 2**31.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import timm
import torch

from captum_transformer_lrp import AttentionFlow, ExplanationError, RawAttention
from captum_transformer_lrp.attr import attention_flow
from captum_transformer_lrp.attr.attention_flow import greatest_flow, layered_graph

ROUNDING = 1e-7


def smallest_cut(capacities: np.ndarray, readout: np.ndarray, token: int) -> float:
    """The capacity of the smallest cut between source and token, of all that there are.

    It equals the greatest flow (Ford and Fulkerson 1956).
    """
    layers, size, _ = capacities.shape
    inner = [(layer, i) for layer in range(layers + 1) for i in range(size) if (layer, i)]
    inner = [node for node in inner if node != (0, token)]
    smallest = np.inf
    for chosen in itertools.product([False, True], repeat=len(inner)):
        # `above` holds the nodes on the source's side of the cut.
        above = np.zeros((layers + 1, size), dtype=bool)
        for node, is_above in zip(inner, chosen, strict=True):
            above[node] = is_above
        cut = readout[~above[layers]].sum()
        for layer in range(layers):
            crossing = above[layer + 1][:, None] & ~above[layer][None, :]
            cut += capacities[layer][crossing].sum()
        smallest = min(smallest, cut)
    return float(smallest)


def random_attention(layers: int, size: int, seed: int) -> np.ndarray:
    """Attention with skip connections; some attention weights are exactly zero."""
    random = np.random.default_rng(seed)
    weights = random.random((layers, size, size)) ** 3
    weights[random.random(weights.shape) < 0.3] = 0
    weights += 1e-3 * np.eye(size)
    return 0.5 * weights / weights.sum(-1, keepdims=True) + 0.5 * np.eye(size)


@pytest.mark.parametrize(("layers", "size"), [(1, 3), (1, 5), (2, 3), (2, 4), (3, 3)])
@pytest.mark.parametrize("readout", ["one token", "mean", "weights"])
def test_the_greatest_flow_is_the_smallest_cut(layers: int, size: int, readout: str) -> None:
    weights = {
        "one token": np.eye(size)[0],
        "mean": np.full(size, 1 / size),
        "weights": np.arange(size) / np.arange(size).sum(),
    }[readout]
    for seed in range(2):
        capacities = random_attention(layers, size, seed)
        graph = layered_graph(capacities, weights)
        found = [greatest_flow(graph, token) for token in range(size)]
        expected = [smallest_cut(capacities, weights, token) for token in range(size)]
        assert np.allclose(found, expected, rtol=0, atol=ROUNDING)


def test_one_layer_lets_through_the_row_of_its_matrix() -> None:
    capacities = random_attention(1, 6, 0)
    graph = layered_graph(capacities, np.eye(6)[2])
    found = [greatest_flow(graph, token) for token in range(6)]
    assert np.allclose(found, capacities[0, 2], rtol=0, atol=ROUNDING)


def test_without_attention_all_flow_stays_on_its_token() -> None:
    graph = layered_graph(np.stack([np.eye(4)] * 5), np.eye(4)[1])
    assert [greatest_flow(graph, token) for token in range(4)] == [0, 1, 0, 0]


def test_uniform_attention_is_limited_by_the_last_edges() -> None:
    """Token j can be given what enters it: 1/6 from each token and 1/2 more from itself."""
    uniform = np.full((2, 3, 3), 1 / 6) + 0.5 * np.eye(3)
    graph = layered_graph(uniform, np.eye(3)[0])
    # From 0 to 0: 2/3 straight, 1/6 by each of the others. From 0 to 1: 1/6 at the first step
    # straight to 1, 1/6 by 2, and of the 2/3 that stay on 0 no more than 1/6.
    assert greatest_flow(graph, 0) == pytest.approx(1.0, abs=ROUNDING)
    assert greatest_flow(graph, 1) == pytest.approx(1 / 6 + 1 / 6 + 1 / 6, abs=ROUNDING)


# -- on models ----------------------------------------------------------------------------------


def explained(case: Any, **options: Any) -> Any:
    return AttentionFlow(case.model).attribute(case.inputs, 1, case.kwargs, **options)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_capacities_are_attention_and_skip_connection_in_equal_parts(
    case: Any, fusion: str
) -> None:
    attentions = [maps.attention for maps in case.explain().attentions]
    fused = torch.stack(
        [{"mean": A.mean(1), "max": A.amax(1), "min": A.amin(1)}[fusion] for A in attentions], 1
    )
    size = fused.shape[-1]
    capacities = fused + torch.eye(size)
    capacities = capacities / capacities.sum(-1, keepdim=True)
    if fusion == "mean":
        assert torch.allclose(capacities, 0.5 * fused + 0.5 * torch.eye(size).double())
    found = AttentionFlow(case.model, head_fusion=fusion).attribute(
        case.inputs, 1, case.kwargs, granularity="token"
    )
    for example in range(len(case.inputs)):
        graph = layered_graph(capacities[example].numpy(), case.readout.numpy())
        expected = torch.tensor([greatest_flow(graph, token) for token in range(size)])
        assert torch.allclose(found[example], expected.double(), rtol=0, atol=ROUNDING)


def test_a_model_of_one_block_gives_its_row(vit_case: Any) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, depth=1).double().eval()
    images = torch.randn(1, 3, 160, 160).double()
    flow = AttentionFlow(model).attribute(images, 1, granularity="token")
    row = RawAttention(model).attribute(images, 1, granularity="token")
    # The source lets in 1, and the last edges are the row of [CLS].
    assert torch.allclose(flow[:, 1:], 0.5 * row[:, 1:], rtol=0, atol=ROUNDING)


def test_padding_gets_exactly_zero(bert_case: Any) -> None:
    padded = bert_case.kwargs["attention_mask"] == 0
    flow = explained(bert_case, granularity="token")
    assert not flow[padded].any()
    assert bool((flow[~padded] > 0).all())
    assert not explained(bert_case)[padded].any()


def test_the_input_map_sums_to_the_tokens(case: Any) -> None:
    tokens = explained(case, granularity="token")
    inputs = explained(case)
    assert inputs.shape == case.inputs.shape
    # The class token of an image model lies on no pixel.
    kept = tokens if not case.is_image else tokens[:, 1:]
    if not case.is_image:
        assert torch.allclose(inputs, tokens)
    else:
        assert torch.allclose(inputs.sum((1, 2, 3)) / kept.sum(1), torch.tensor(64.0).double()), (
            "each of 16 patches is spread over 8 x 8 pixels by interpolation"
        )


def test_targets_that_are_read_from_the_same_token_are_computed_once(
    vit_case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    of_one = attention_flow.greatest_flow
    monkeypatch.setattr(
        attention_flow, "greatest_flow", lambda *args: calls.append(args) or of_one(*args)
    )
    first, second = AttentionFlow(vit_case.model).attribute_targets(vit_case.inputs, [0, 1])
    assert len(calls) == 3 * len(vit_case.readout)
    assert torch.equal(first, second)


def test_long_inputs_are_announced(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    """512 tokens and 12 blocks: 3.1 million edges."""
    with caplog.at_level(logging.WARNING):
        attention_flow._announce(64, 13 * 64, 12 * 64 * 64)
        assert not caplog.records
        attention_flow._announce(512, 13 * 512, 12 * 512 * 512)
    (record,) = caplog.records
    assert "512 maximum flows" in record.getMessage()
    assert "6656 nodes and 3145728 edges" in record.getMessage()
    assert "about 64 s" in record.getMessage()
    assert "show_progress=True" in record.getMessage()


def test_progress_counts_the_tokens_of_all_examples(
    vit_case: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = explained(vit_case, granularity="token")
    assert capsys.readouterr().err == ""
    shown = explained(vit_case, granularity="token", show_progress=True)
    assert "51/51" in capsys.readouterr().err
    assert torch.equal(quiet, shown)


def test_windowed_attention_is_refused() -> None:
    model = timm.create_model("test_vit", num_classes=3).eval()
    assert AttentionFlow(model).attribute(torch.randn(1, 3, 160, 160)) is not None
    swin = timm.models.SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 1), num_heads=(2, 4)
    ).eval()
    with pytest.raises(ExplanationError, match="no one matrix over all tokens"):
        AttentionFlow(swin).attribute(torch.randn(2, 3, 32, 32), granularity="token")


def test_options_must_be_known(vit_case: Any) -> None:
    with pytest.raises(ValueError, match="granularity must be one of"):
        explained(vit_case, granularity="matrix")
    with pytest.raises(ValueError, match="head_fusion must be one of"):
        AttentionFlow(vit_case.model, head_fusion="median")
