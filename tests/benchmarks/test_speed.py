"""The speed benchmark measures what it says, on a tiny model; times themselves are not tested."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from captum_transformer_lrp.benchmarks import speed
from captum_transformer_lrp.benchmarks.speed import (
    TEXT_MODELS,
    Cost,
    Workload,
    measure,
    methods,
    table,
)
from captum_transformer_lrp.cli.benchmark import benchmark


@pytest.mark.slow
def test_every_method_explains_the_workload() -> None:
    model, inputs = Workload("test_vit", batch=2).build()
    for name, run in methods(model, inputs).items():
        if name.endswith("compiled") and not shutil.which("g++"):
            continue
        found = run()
        if name.startswith("no-grad forward pass"):
            assert found is None
            continue
        for one in found if isinstance(found, list) else [found]:
            assert one.shape == inputs.shape


def test_ratios_are_to_saliency_and_to_the_forward_pass() -> None:
    costs = {cost.method: cost for cost in measure(Workload("test_vit"), ["RawAttention"])}
    assert list(costs) == ["no-grad forward pass", "Saliency", "RawAttention"]
    assert costs["Saliency"].ratio == 1 == costs["no-grad forward pass"].to_forward
    ours, forward = costs["RawAttention"], costs["no-grad forward pass"]
    assert ours.seconds == pytest.approx(ours.to_forward * forward.seconds)


def test_a_wrong_method_is_named() -> None:
    with pytest.raises(ValueError, match="there is no method 'Magic'; there are no-grad"):
        measure(Workload("test_vit"), ["Magic"])


def test_a_workload_says_what_it_is() -> None:
    work = Workload("bert-base", batch=8, tokens=16, depth=2, dtype="bfloat16")
    assert str(work) == "bert-base, 16 tokens, 2 blocks, batch 8, cpu, bfloat16"
    model, embeddings = work.build()
    assert embeddings.shape == (8, 16, 768)
    assert embeddings.dtype == next(model.parameters()).dtype == torch.bfloat16
    assert table(work, []).splitlines()[1] == f"### {work}"


def test_a_language_model_has_the_logits_of_the_next_token(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = Workload("llama-8b", device="meta").build()
    assert round(sum(one.numel() for one in whole.parameters()) / 1e9, 1) == 8.0
    name, _ = TEXT_MODELS["llama-8b"]
    small = {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 9, "intermediate_size": 8}
    monkeypatch.setitem(TEXT_MODELS, "llama-8b", (name, small))
    model, embeddings = Workload("llama-8b", batch=2, tokens=5, depth=1).build()
    of_all = model.get_submodule("model")(inputs_embeds=embeddings).logits
    assert torch.equal(model(embeddings), of_all[:, -1])
    assert model(embeddings).shape == (2, 9)


def test_tf32_is_asked_of_pytorch_while_methods_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    run = {"no-grad forward pass": lambda: found.append(torch.get_float32_matmul_precision())}
    monkeypatch.setattr(speed, "methods", lambda *_: {**run, "Saliency": int})
    before = torch.get_float32_matmul_precision()
    measure(Workload("test_vit", dtype="tf32"), repeats=1)
    assert set(found) == {"high"}
    assert torch.get_float32_matmul_precision() == before


def test_throughput_is_examples_per_second() -> None:
    costs = [Cost("slow", 2.0, 4.0, 8.0), Cost("fast", 0.01, 0.02, 0.04, 512.3)]
    *_, title, _, slow, fast = table(Workload("test_vit", batch=8), costs).splitlines()
    assert title == "| method | ms | examples/s | × Saliency | × forward | peak MB |"
    assert slow == "| slow | 2000.0 | 4.00 | 4.00 | 8.00 | |"
    assert fast == "| fast | 10.0 | 800.00 | 0.02 | 0.04 | 512 |"


def test_the_command_writes_a_table_and_figures(tmp_path: Path) -> None:
    output = tmp_path / "speed.md"
    threads = torch.get_num_threads()
    result = CliRunner().invoke(
        benchmark,
        ["speed", "--model", "test_vit", "--method", "RawAttention", "--repeats", "1",
         "--batch", "1", "--batch", "2", "--cpu-time", "--output", str(output)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == threads
    assert "### test_vit, batch 2" in output.read_text()
    figures = json.loads(output.with_suffix(".json").read_text())
    assert figures["cpu_time"] is True
    assert [one["workload"]["batch"] for one in figures["results"]] == [1, 2]
