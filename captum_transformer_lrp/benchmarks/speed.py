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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
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
    """A batch of images for a name of timm, or of texts for a name of :data:`TEXT_MODELS`."""

    model: str
    batch: int = 1
    tokens: int = 128
    depth: int | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def build(self) -> tuple[nn.Module, Tensor]:
        """The model with random weights, and its inputs: images, or embeddings of tokens."""
        torch.manual_seed(0)
        dtype = torch.bfloat16 if self.dtype == "bfloat16" else torch.float32
        if self.model in TEXT_MODELS:
            import transformers

            name, sizes = TEXT_MODELS[self.model]
            blocks = {} if self.depth is None else {"num_hidden_layers": self.depth}
            kind = getattr(transformers, name)
            config = kind.config_class(**{**sizes, **blocks})
            with torch.device(self.device):
                model: nn.Module = _OfEmbeddings(kind(config))
            inputs = torch.randn(self.batch, self.tokens, config.hidden_size)
        else:
            import timm

            model = timm.create_model(
                self.model, **({} if self.depth is None else {"depth": self.depth})
            )
            size = timm.data.resolve_model_data_config(model)["input_size"]
            inputs = torch.randn(self.batch, *size)
        return model.eval().to(self.device, dtype), inputs.to(self.device, dtype)

    def __str__(self) -> str:
        tokens = f", {self.tokens} tokens" * (self.model in TEXT_MODELS)
        blocks = "" if self.depth is None else f", {self.depth} blocks"
        where = f", {self.device}, {self.dtype}".replace(", cpu, float32", "")
        return f"{self.model}{tokens}{blocks}, batch {self.batch}{where}"


TEXT_MODELS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "bert-base": ("BertForSequenceClassification", {}),
    "llama-8b": ("LlamaForCausalLM", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "use_cache": False,
    }),
}  # fmt: skip
"""A class of transformers and sizes: BERT's default ones, and those of Llama 3."""


class _OfEmbeddings(nn.Module):
    """A model as a function of its input embeddings, which gradient methods can differentiate.

    Of a language model the logits (N, V) of the next token.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._last = {"logits_to_keep": 1} if hasattr(model, "lm_head") else {}

    def forward(self, embeddings: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs_embeds=embeddings, **self._last).logits
        return logits[:, -1] if self._last else logits


Run = Callable[[], Any]


def methods(model: nn.Module, inputs: Tensor) -> dict[str, Run]:
    """Every method by its name, to be called without arguments."""
    from captum import attr as stock

    import captum_transformer_lrp as ours

    def forward(chosen: Callable[[], nn.Module] = lambda: model) -> None:
        with torch.no_grad():
            chosen()(inputs)

    def of(method: Any, **options: Any) -> Run:
        return lambda: method.attribute(inputs, target=TARGET, **options)

    own: dict[str, Any] = {"dtype": torch.bfloat16} if inputs.dtype == torch.bfloat16 else {}

    def plain(*names: str) -> dict[str, Run]:
        return {name: of(getattr(ours, name)(model, **own)) for name in names}

    ta = partial(ours.TransformerAttribution, model, **own)
    lrp = partial(ours.TransformerLRP, model, **own)
    several, propagated = ta(), lrp(preset="epsilon")
    targets = [0, 1] * 5  # every model has two classes
    return {
        "no-grad forward pass": forward,
        REFERENCE: of(stock.Saliency(model)),
        "InputXGradient": of(stock.InputXGradient(model)),
        "IntegratedGradients (50 steps)": of(
            stock.IntegratedGradients(model), n_steps=50, internal_batch_size=max(8, len(inputs))
        ),
        "TransformerAttribution": of(ta()),
        "TransformerAttribution, epsilon=0": of(ours.TransformerAttribution(model, epsilon=0)),
        "TransformerAttribution, ten targets": lambda: several.attribute_targets(inputs, targets),
        "TransformerAttribution, internal_batch_size=1": of(ta(), internal_batch_size=1),
        "TransformerAttribution, checkpointing": of(ta(checkpointing=True)),
        "TransformerLRP, epsilon": of(lrp(preset="epsilon")),
        "TransformerLRP, epsilon, ten targets": lambda: propagated.attribute_targets(
            inputs, targets
        ),
        **plain("PartialLRP", "AttentionRollout", "RawAttention", "AttentionGradCam"),
        **plain("GenericAttention"),
        **{
            f"TransformerLRP, {preset}": of(lrp(preset=preset))
            for preset in ("lrp", "attnlrp", "attnlrp_gamma", "cp_lrp")
        },
        **plain("LibraGradient"),
        "LibraGradient, layers": of(ours.LibraGradient(model, **own, aggregation="layers")),
        **plain("LeGrad", "AttCat", "BiAttention", "NormRollout"),
        "NormRollout, alti": of(ours.NormRollout(model, **own, contribution="alti")),
        "no-grad forward pass, compiled": partial(forward, cache(lambda: _compiled_model(model))),
        "TransformerAttribution, compiled": _compiled(ta(), inputs),
        "TransformerAttribution, compiled, eager": _compiled(ta(), inputs, backend="eager"),
        "TransformerLRP, attnlrp, compiled": _compiled(lrp(preset="attnlrp"), inputs),
        "AttentionRollout, compiled": _compiled(ours.AttentionRollout(model, **own), inputs),
    }


def _compiled(method: Any, inputs: Tensor, **options: Any) -> Run:
    """A method that is compiled when it is first called."""
    explain = cache(lambda: method.compile(inputs, **options))
    return lambda: explain()(inputs, TARGET)


def _compiled_model(model: nn.Module) -> Any:
    on_gpu = any(one.is_cuda for one in model.parameters())
    return torch.compile(model, mode="reduce-overhead" if on_gpu else None)  # CUDA graphs


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
    quick = [name for name in runs if "compiled" not in name]
    chosen = [name for name in runs if name in (quick if names is None else {*always, *names})]
    times: dict[str, list[float]] = {name: [] for name in chosen}
    with warnings.catch_warnings(), _multiplying("high" if workload.dtype == "tf32" else "highest"):
        warnings.simplefilter("ignore")  # Captum's, of inputs that need no gradient
        for name in chosen:
            runs[name]()  # what is allocated or chosen once is not counted
        for _ in range(repeats):
            for name in chosen:
                times[name].append(_seconds(runs[name], inputs.device, cpu_time))
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


@contextmanager
def _multiplying(precision: str) -> Iterator[None]:
    """How precisely PyTorch multiplies float32, within a block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _seconds(run: Run, device: torch.device, cpu_time: bool) -> float:
    if device.type == "cuda" and not cpu_time:
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            run()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1e3
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
        f"| {cost.method} | {cost.seconds * 1e3:.1f} | {workload.batch / cost.seconds:.2f} "
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
