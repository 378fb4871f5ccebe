"""Benchmarks with compiled explanations find what they find without, whatever comes first."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_transformer_lrp import RawAttention
from captum_transformer_lrp.attr.base import RecordedAttribution
from captum_transformer_lrp.benchmarks import BenchmarkError, MapMetrics, Perturbation, run
from captum_transformer_lrp.benchmarks.methods import methods_by_name
from captum_transformer_lrp.models import ImageModel

OURS = ("partial_lrp", "raw_attention:cells=10")
PIXELS = torch.randn(
    1, 3, 160, 160, generator=torch.Generator().manual_seed(0), dtype=torch.float64
)


@pytest.fixture(scope="module")
def double(tiny: ImageModel) -> ImageModel:
    """In float64, with two blocks."""
    model = copy.deepcopy(tiny.model).double()
    model.blocks = model.blocks[:2]
    return replace(tiny, model=model)


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What has been compiled with."""
    found: list[Tensor] = []
    compile_it = RecordedAttribution.compile

    def noted(self: Any, example: Tensor, *args: Any, **options: Any) -> Any:
        found.append(example)
        return compile_it(self, example, *args, **options)

    monkeypatch.setattr(RecordedAttribution, "compile", noted)
    return found


class Metrics(MapMetrics):
    """In float64, where programs differ by less than 1e-10."""

    stopped: int | None = None

    def seen(self, photo: Image.Image) -> Tensor:
        return super().seen(photo).double()

    def load(self, index: int) -> Any:
        if self.stopped is not None:
            if not self.stopped:
                raise KeyboardInterrupt
            self.put(stopped=self.stopped - 1)
        return super().load(index)


class Removal(Perturbation):
    """The same."""

    def seen(self, photo: Image.Image) -> Tensor:
        return super().seen(photo).double()


MEASURED = ("sensitivity", "class_sensitivity", "mprt")


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Metrics, {"metrics": MEASURED}), (Removal, {"explain": ["predicted"]})],
)
def test_a_benchmark_finds_the_same_figures_by_one_graph_for_each_method(
    kind: Any, options: Any, double: ImageModel, photos: Path, tmp_path: Path, examples: list[Any]
) -> None:
    """Copies with noise, other classes, models with random weights, and methods of Captum's."""
    methods = [*OURS, "saliency", "random"]
    results = []
    for name in ("eager", None):
        benchmark = kind(double, photos, methods, compile=name, limit=2, **options)
        results.append(run(benchmark, tmp_path / str(name)))
        assert [one.shape for one in examples] == [(1, 3, 160, 160)] * len(OURS)
    values = [{(one.method, one.title): one.value for one in result.figures} for result in results]
    assert values[0] == pytest.approx(values[1], rel=1e-10, abs=1e-10)


def test_a_stopped_run_goes_on_with_the_same_digits(
    double: ImageModel, photos: Path, tmp_path: Path, examples: list[Tensor]
) -> None:
    def measure(folder: str, stopped: int | None = None, how: Any = "eager") -> None:
        metrics = ["sensitivity", "sparseness"]
        benchmark = Metrics(double, photos, OURS[:1], metrics=metrics, compile=how, limit=3)
        benchmark.put(stopped=stopped)
        run(benchmark, tmp_path / folder)

    measure("whole")
    with pytest.raises(KeyboardInterrupt, match="2 of 3 done"):
        measure("parts", stopped=2)
    measure("parts")
    written = [tmp_path / folder / "results.json" for folder in ("whole", "parts")]
    assert written[0].read_bytes() == written[1].read_bytes()
    assert json.loads(written[0].read_text())["settings"]["compile"] == "eager"
    # The photo that a run begins with is of no effect on its graphs.
    assert len(examples) == 3
    assert all(torch.equal(one, examples[0]) for one in examples)
    with pytest.raises(BenchmarkError, match='compile "eager" instead of null'):
        measure("whole", how=None)


def test_what_is_compiled_is_one_class_of_one_image_by_the_model_itself(
    double: ImageModel, examples: list[Tensor]
) -> None:
    (method,) = methods_by_name(["partial_lrp"])
    compiled, other = replace(method, compiles=(double.model, "eager")), copy.deepcopy(double.model)
    compiled.maps(other, PIXELS, [1])
    compiled.maps(double.model, PIXELS, [1, 2])
    assert not examples
    for target in (1, 2, 1):
        expected = method.maps(double.model, PIXELS, [target])
        torch.testing.assert_close(compiled.maps(double.model, PIXELS, [target]), expected)
    assert len(examples) == 1


def test_a_method_that_cannot_be_compiled_explains_by_itself(
    double: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RawAttention, "_explained", lambda self, *args: _with_numpy(args[1]))
    (method,) = methods_by_name(["raw_attention"])
    compiled = replace(method, compiles=(double.model, "eager"))
    with pytest.warns(UserWarning, match="raw_attention is not compiled: .*PyTorch's operations"):
        (found,) = compiled.maps(double.model, PIXELS, [1])
    assert torch.equal(found, method.maps(double.model, PIXELS, [1])[0])
    assert torch.equal(
        compiled.maps(double.model, PIXELS, [1])[0], found
    )  # without another warning


def _with_numpy(start: Tensor) -> Tensor:
    value = float(start.sum().numpy() * 2)
    return torch.full(PIXELS.shape, value)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_machine_code_finds_the_same_figures(
    double: ImageModel, photos: Path, tmp_path: Path
) -> None:
    values = []
    for name in ("inductor", None):
        metrics = ["sensitivity", "sparseness"]
        benchmark = Metrics(double, photos, OURS, metrics=metrics, compile=name, limit=2)
        result = run(benchmark, tmp_path / str(name))
        values.append({(one.method, one.title): one.value for one in result.figures})
    assert values[0] == pytest.approx(values[1], rel=1e-9)
