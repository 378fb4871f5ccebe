"""What explanations cost: time, throughput and memory of each method, beside Captum's.

All methods explain the same random inputs with the same randomly initialised model, in one process
and interleaved, so that a busy machine slows all of them alike; what counts are the ratios of their
medians.  Peak memory is measured by PyTorch, in a fresh process for each method.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from captum_transformer_lrp.benchmarks.runner import versions

REFERENCE = "Saliency"
TARGET = 1


@dataclass(frozen=True)
class Workload:
    """A batch of images for a name of timm, or of texts for ``bert-base``, BERT's default."""

    model: str
    batch: int = 1
    tokens: int = 128
    depth: int | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def build(self) -> tuple[nn.Module, Tensor]:
        """The model with random weights, and its inputs: images, or embeddings of tokens."""
        torch.manual_seed(0)
        if self.model == "bert-base":
            from transformers import BertConfig, BertForSequenceClassification

            blocks = {} if self.depth is None else {"num_hidden_layers": self.depth}
            config = BertConfig(**blocks)
            model: nn.Module = _OfEmbeddings(BertForSequenceClassification(config))
            inputs = torch.randn(self.batch, self.tokens, config.hidden_size)
        else:
            import timm

            model = timm.create_model(
                self.model, **({} if self.depth is None else {"depth": self.depth})
            )
            size = timm.data.resolve_model_data_config(model)["input_size"]
            inputs = torch.randn(self.batch, *size)
        dtype = getattr(torch, self.dtype)
        return model.eval().to(self.device, dtype), inputs.to(self.device, dtype)

    def __str__(self) -> str:
        tokens = f", {self.tokens} tokens" * (self.model == "bert-base")
        blocks = "" if self.depth is None else f", {self.depth} blocks"
        where = f", {self.device}, {self.dtype}".replace(", cpu, float32", "")
        return f"{self.model}{tokens}{blocks}, batch {self.batch}{where}"


class _OfEmbeddings(nn.Module):
    """BERT as a function of its input embeddings, which gradient methods can differentiate."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeddings: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs_embeds=embeddings).logits
        return logits


Run = Callable[[], Any]


def methods(model: nn.Module, inputs: Tensor) -> dict[str, Run]:
    """Every method by its name, to be called without arguments."""
    from captum import attr as stock

    import captum_transformer_lrp as ours

    def forward() -> None:
        with torch.no_grad():
            model(inputs)

    def of(method: Any, **options: Any) -> Run:
        return lambda: method.attribute(inputs, target=TARGET, **options)

    def plain(*names: str) -> dict[str, Run]:
        return {name: of(getattr(ours, name)(model)) for name in names}

    ta, lrp = ours.TransformerAttribution, ours.TransformerLRP
    several, propagated = ta(model), lrp(model, preset="epsilon")
    targets = [0, 1] * 5  # every model has two classes
    return {
        "no-grad forward pass": forward,
        REFERENCE: of(stock.Saliency(model)),
        "InputXGradient": of(stock.InputXGradient(model)),
        "IntegratedGradients (50 steps)": of(
            stock.IntegratedGradients(model), n_steps=50, internal_batch_size=max(8, len(inputs))
        ),
        "TransformerAttribution": of(ta(model)),
        "TransformerAttribution, epsilon=0": of(ta(model, epsilon=0)),
        "TransformerAttribution, ten targets": lambda: several.attribute_targets(inputs, targets),
        "TransformerAttribution, internal_batch_size=1": of(ta(model), internal_batch_size=1),
        "TransformerAttribution, checkpointing": of(ta(model, checkpointing=True)),
        "TransformerLRP, epsilon": of(lrp(model, preset="epsilon")),
        "TransformerLRP, epsilon, ten targets": lambda: propagated.attribute_targets(
            inputs, targets
        ),
        **plain("PartialLRP", "AttentionRollout", "RawAttention", "AttentionGradCam"),
        **plain("GenericAttention"),
        **{
            f"TransformerLRP, {preset}": of(lrp(model, preset=preset))
            for preset in ("lrp", "attnlrp", "attnlrp_gamma", "cp_lrp")
        },
        **plain("LibraGradient"),
        "LibraGradient, layers": of(ours.LibraGradient(model, aggregation="layers")),
        **plain("LeGrad", "AttCat", "BiAttention", "NormRollout"),
        "NormRollout, alti": of(ours.NormRollout(model, contribution="alti")),
        "TransformerAttribution, compiled": _compiled(ta(model), inputs),
        "TransformerLRP, attnlrp, compiled": _compiled(lrp(model, preset="attnlrp"), inputs),
        "AttentionRollout, compiled": _compiled(ours.AttentionRollout(model), inputs),
    }


def _compiled(method: Any, inputs: Tensor) -> Run:
    """A method that is compiled when it is first called."""
    explain = cache(lambda: method.compile(inputs))
    return lambda: explain()(inputs, TARGET)


@dataclass(frozen=True)
class Cost:
    """The median seconds of a call, and their ratios to ``Saliency`` and to a forward pass.

    ``megabytes`` is the most that a call has allocated at one time, if it was measured.
    """

    method: str
    seconds: float
    ratio: float
    to_forward: float
    megabytes: float | None = None


def measure(
    workload: Workload,
    names: Sequence[str] | None = None,
    *,
    repeats: int = 7,
    cpu_time: bool = False,
    memory: bool = False,
) -> list[Cost]:
    """Time the methods of a workload, interleaved, and compare their medians.

    Args:
        workload: model and inputs.
        names: the methods, None for all that need no compilation; ``Saliency`` and the forward pass
            are always among them.
        repeats: number of rounds, in each of which every method runs once.
        cpu_time: whether to count processor time, that of all threads together.
        memory: whether to measure peak memory, too.

    Raises:
        ValueError: for a method that does not exist.
    """
    model, inputs = workload.build()
    runs = methods(model, inputs)
    for name in names or ():
        if name not in runs:
            raise ValueError(f"there is no method {name!r}; there are {', '.join(runs)}")
    always = {next(iter(runs)), REFERENCE}
    quick = [name for name in runs if not name.endswith("compiled")]
    chosen = [name for name in runs if name in (quick if names is None else {*always, *names})]
    times: dict[str, list[float]] = {name: [] for name in chosen}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum's, of inputs that need no gradient
        for name in chosen:
            runs[name]()  # what is allocated or chosen once is not counted
        for _ in range(repeats):
            for name in chosen:
                times[name].append(_seconds(runs[name], cpu_time))
    medians = {name: statistics.median(found) for name, found in times.items()}
    return [
        Cost(
            name,
            seconds,
            seconds / medians[REFERENCE],
            seconds / medians["no-grad forward pass"],
            peak_memory(workload, name) if memory else None,
        )
        for name, seconds in medians.items()
    ]


def _seconds(run: Run, cpu_time: bool) -> float:
    options: dict[str, Any] = {"timer": time.process_time} if cpu_time else {}
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads(), **options)
    return float(timer.timeit(1).median)


def peak_memory(workload: Workload, method: str) -> float:
    """The megabytes that a call has allocated at most at one time, in a fresh process."""
    # Without the profiler's remarks on GPUs that are not there.
    with mock.patch.dict(os.environ, KINETO_LOG_LEVEL="99"):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            return pool.apply(_peak_here, (workload, method, torch.get_num_threads()))


def _peak_here(workload: Workload, method: str, threads: int) -> float:
    torch.set_num_threads(threads)
    run = methods(*workload.build())[method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()  # what is allocated once and for good is not counted
        if workload.device.startswith("cuda"):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        return peak_of_call(run)


def peak_of_call(run: Run) -> float:
    """The megabytes that PyTorch has allocated at most at one time on the CPU during a call.

    Example:
        >>> round(peak_of_call(lambda: torch.zeros(2, 2**20).sum()))
        8
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()
    kineto = profiler.profiler
    assert kineto is not None
    assert kineto.kineto_results is not None
    changes = [
        (event.start_ns(), event.nbytes())
        for event in kineto.kineto_results.events()
        if event.name() == "[memory]"
    ]
    return max(accumulate(size for _, size in sorted(changes)), default=0) / 2**20


def machine() -> dict[str, str]:
    """What the figures depend on: processor, threads and versions."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [one.split(": ")[1] for one in lines if one.startswith("model name")]
    processor = [*names, platform.processor()][0]
    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    return {"processor": processor, "threads": str(torch.get_num_threads()), **versions()}


def table(workload: Workload, costs: Sequence[Cost]) -> str:
    """A table in Markdown."""
    titles = ("ms", "examples/s", "× Saliency", "× forward", "peak MB")
    rows = [
        f"| {cost.method} | {cost.seconds * 1e3:.0f} | {workload.batch / cost.seconds:.2f} "
        f"| {cost.ratio:.2f} | {cost.to_forward:.2f} | "
        + ("|" if cost.megabytes is None else f"{cost.megabytes:.0f} |")
        for cost in costs
    ]
    head = ["", f"### {workload}", "", f"| method | {' | '.join(titles)} |"]
    return "\n".join([*head, "|---|" + "---:|" * len(titles), *rows])


def write(
    results: Sequence[tuple[Workload, Sequence[Cost]]], path: Path, command: str, *, cpu_time: bool
) -> None:
    """Write tables to ``path`` (Markdown), and the same figures beside it as JSON."""
    about = machine()
    clock = "processor time" if cpu_time else "time on the clock"
    lines = ["# What explanations cost, measured", "", f"`{command}`", ""]
    lines.append(f"Medians of {clock}. " + ", ".join(f"{k}: {v}" for k, v in about.items()) + ".")
    lines += [table(workload, costs) for workload, costs in results]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = [
        {"workload": asdict(workload), "costs": [asdict(cost) for cost in costs]}
        for workload, costs in results
    ]
    data = {"command": command, "machine": about, "cpu_time": cpu_time, "results": found}
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
