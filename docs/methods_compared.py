"""Makes the tables of ``docs/methods.md`` from measurements.

Two steps: folders of ``captum-transformer-lrp benchmark`` become small files of one number for each
example, method and metric, in ``docs/methods_compared/``; these become the tables::

    python docs/methods_compared.py collect perturbation FOLDER FOLDER
    python docs/methods_compared.py collect-cost FILE
    python docs/methods_compared.py table

``docs/methods_ranked.py`` makes ranks of the same measurements.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.removal import area
from captum_transformer_lrp.benchmarks.results import Figure
from captum_transformer_lrp.benchmarks.segmentation import example_counts, example_values
from captum_transformer_lrp.benchmarks.statistics import MethodMeans

HERE: Final = Path(__file__).parent
MEASURED: Final = HERE / "methods_compared"
REFERENCE: Final = "transformer_attribution"

METHODS: Final = (
    "transformer_attribution",
    "generic_attention",
    "attention_rollout",
    "raw_attention",
    "attention_gradcam",
    "transformer_lrp:preset=lrp",
    "partial_lrp",
    "attnlrp",
    "transformer_lrp:preset=attnlrp_gamma",
    "transformer_lrp:preset=attnlrp_gamma:cells=14",
    "cp_lrp",
    "libra_gradient",
    "libra_gradient:cells=14",
    "libra_fullgrad_plus",
    "legrad",
    "attcat",
    "bi_attention",
    "norm_rollout",
    "alti",
    "input_x_gradient",
    "saliency",
    "random",
)
"""The rows.  What is for images is not measured on texts."""

TIMED: Final = {
    "transformer_attribution": "TransformerAttribution",
    "generic_attention": "GenericAttention",
    "attention_rollout": "AttentionRollout",
    "raw_attention": "RawAttention",
    "attention_gradcam": "AttentionGradCam",
    "transformer_lrp:preset=lrp": "TransformerLRP, lrp",
    "partial_lrp": "PartialLRP",
    "attnlrp": "TransformerLRP, attnlrp",
    "transformer_lrp:preset=attnlrp_gamma": "TransformerLRP, attnlrp_gamma",
    "cp_lrp": "TransformerLRP, cp_lrp",
    "libra_gradient": "LibraGradient",
    "libra_fullgrad_plus": "LibraGradient, layers",
    "legrad": "LeGrad",
    "attcat": "AttCat",
    "bi_attention": "BiAttention",
    "norm_rollout": "NormRollout",
    "alti": "NormRollout, alti",
    "input_x_gradient": "InputXGradient",
    "saliency": "Saliency",
}
"""What ``benchmark speed`` calls them."""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        benchmark: where it is measured.
        metric: what is measured.
        title: its heading.
        larger: whether larger is better; None where neither is.
        digits: after the decimal point.
        asks: what it asks of a map, a column of ranks; empty where ranks leave it out.
        heavy: whether a few examples would decide the mean: the median stands for it, and
            differences are of logarithms.
        zero: whether the mean's distance from 0 counts: with few photos, chance makes it negative.
    """

    benchmark: str
    metric: str
    title: str
    larger: bool | None = True
    digits: int = 1
    asks: str = ""
    heavy: bool = False
    zero: bool = False


FAITHFUL, PLACED, DEPENDENT, STABLE = "faithful", "on the object", "dependent", "stable"
ASKED: Final = (FAITHFUL, PLACED, DEPENDENT, STABLE)
TEXTS: Final = "texts"

COLUMNS: Final = (
    Column("perturbation", "positive AUC", "positive AUC ↓", False, asks=FAITHFUL),
    Column("perturbation", "negative AUC", "negative AUC ↑", asks=FAITHFUL),
    Column("perturbation", "area between", "area between ↑"),
    Column("segmentation", "pixel accuracy", "pixel accuracy ↑", asks=PLACED),
    Column("segmentation", "mIoU", "mIoU ↑", asks=PLACED),
    Column("segmentation", "mAP", "mAP ↑", asks=PLACED),
    Column("grid-pointing", "localisation", "grid pointing ↑", asks=PLACED),
    Column("rationale", "token-F1", "token-F1 ↑", asks=TEXTS),
    Column("text-perturbation", "comprehensiveness", "comprehensiveness ↑", digits=3, asks=TEXTS),
    Column("text-perturbation", "sufficiency", "sufficiency ↓", False, digits=3, asks=TEXTS),
)
"""Of the benchmarks' tables."""

SINGLE: Final = (
    Column("metrics", "deletion", "deletion ↓", False, 3, FAITHFUL),
    Column("metrics", "insertion", "insertion ↑", True, 3, FAITHFUL),
    Column("metrics", "road MoRF", "ROAD MoRF ↓", False, 3, FAITHFUL),
    Column("metrics", "road LeRF", "ROAD LeRF ↑", True, 3, FAITHFUL),
    Column("metrics", "saco", "SaCo ↑", True, 2, FAITHFUL),
    Column("metrics", "infidelity", "infidelity ↓", False, 3, FAITHFUL),
    Column("metrics", "mprt 100 %", "MPRT → 0", False, 2, DEPENDENT, zero=True),
    Column("metrics", "mprt entropy", "eMPRT ↑", True, 3, DEPENDENT),
    Column("metrics", "random_logit", "random logit ↓", False, 2, DEPENDENT),
    Column("metrics", "class_sensitivity", "class sensitivity ↓", False, 2, DEPENDENT),
    Column("metrics", "sparseness", "sparseness", None, 2),
    Column("metrics", "entropy", "entropy", None, 2),
)
"""Of ``benchmark metrics``."""

ROBUST: Final = (
    Column("robustness", "sensitivity", "sensitivity, median ↓", False, 2, STABLE, heavy=True),
    Column("robustness", "local_lipschitz", "local Lipschitz ↓", False, 2, STABLE),
    Column("robustness", "relative_stability input", "RIS, median ↓", False, 1, STABLE, heavy=True),
    Column(
        "robustness", "relative_stability output", "ROS, median ↓", False, 1, STABLE, heavy=True
    ),
)
"""Of ``benchmark metrics`` on copies of photos, a run of its own."""

LETTERS: Final = tuple(
    Column(f"letters-{model}", f"{metric}, {model}", f"{title}: {metric} ↑", digits=2)
    for model, title in (("gpt2", "GPT-2"), ("llama", "Llama"))
    for metric in ("found", "mass", "LeRF − MoRF")
)
"""Of ``benchmark generation`` on models that copy letters."""

TABLES: Final[Mapping[str, Sequence[Column]]] = {
    "benchmarks": COLUMNS,
    "metrics": SINGLE,
    "robustness": ROBUST,
    "letters": LETTERS,
}
"""By name of the file of a table."""

COST: Final = "cost ↓"

Values = dict[str, dict[str, list[float]]]


def collect(benchmark: str, folders: Sequence[Path]) -> Path:
    """Write what the folders of a benchmark measured on the examples that all of them have.

    Args:
        benchmark: its name.
        folders: of runs that differ in methods only; of a method in several, the first counts.

    Returns:
        The file.

    Raises:
        ValueError: for runs that differ in more, or have no example in common.
    """
    settings = [settings_of(folder) for folder in folders]
    for folder, one in zip(folders, settings, strict=True):
        differing = [name for name in one if one[name] != settings[0].get(name)]
        if differing or one.keys() != settings[0].keys():
            raise ValueError(f"{folder} and {folders[0]} differ in {', '.join(differing)}")
    runs = [records_of(folder) for folder in folders]
    names = [name for name in runs[0] if all(name in run for run in runs)]
    if not names:
        raise ValueError(f"{', '.join(map(str, folders))} have no example in common")
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for method in next(iter(run.values())).methods:
            if method in METHODS and method not in methods:
                methods[method] = [run[name].methods[method] for name in names]
    values = {
        method: OF_BENCHMARK.get(benchmark, _metrics)(methods[method])
        for method in METHODS
        if method in methods
    }
    about = {"benchmark": benchmark, "settings": settings[0], "examples": names}
    lines = [f'"{method}": {json.dumps(found)}' for method, found in values.items()]
    MEASURED.mkdir(exist_ok=True)
    file = MEASURED / f"{benchmark}.json"
    text = json.dumps(about, ensure_ascii=False)[:-1] + ',\n"values": {\n' + ",\n".join(lines)
    file.write_text(text + "\n}}\n", encoding="utf-8")
    return file


def settings_of(folder: Path) -> dict[str, Any]:
    """What two runs must share: everything but the methods and which examples and classes."""
    found: dict[str, Any] = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    unlike = ("methods", "explain", "examples", "examples_sha256")
    found = {name: value for name, value in found.items() if name not in unlike}
    if "/" in str(found["model"]):
        found["model"] = Path(found["model"]).name
    return found


def records_of(folder: Path) -> dict[str, Record]:
    """By the examples' names, in the order of the data."""
    found: dict[str, Record] = {}
    for file in sorted(folder.glob("records-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # else a killed process left it
                record = Record.from_line(line)
                if record.skipped is None:
                    found[record.identifier] = record
    return dict(sorted(found.items()))


def _areas(found: list[Mapping[str, Any]]) -> dict[str, list[float]]:
    areas = {
        test: [round(area([100.0 * bit for bit in one["predicted"][test]]), 6) for one in found]
        for test in ("positive", "negative")
    }
    between = [n - p for p, n in zip(areas["positive"], areas["negative"], strict=True)]
    return {**{f"{test} AUC": of_test for test, of_test in areas.items()}, "area between": between}


def _agreements(found: list[Mapping[str, Any]]) -> dict[str, list[float]]:
    totals: dict[str, int] = {}
    for one in found:
        for name, count in example_counts(one).items():
            totals[name] = totals.get(name, 0) + count
    values = [example_values(one, totals, len(found)) for one in found]
    return {
        metric: [round(one[metric, ""], 4) for one in values]
        for metric in ("pixel accuracy", "mIoU", "mAP")
    }


def _localisations(found: list[Mapping[str, Any]]) -> dict[str, list[float]]:
    shares = [one["shares"] for one in found]
    return {"localisation": [round(100 * sum(one) / len(one), 4) for one in shares]}


def _scores(found: list[Mapping[str, Any]]) -> dict[str, list[float]]:
    at_k = [one["target"]["token-F1"] for one in found]
    return {"token-F1": [round(100 * sum(one) / len(one), 4) for one in at_k]}


def _drops(found: list[Mapping[str, Any]]) -> dict[str, list[float]]:
    return {
        metric: [
            round(math.fsum(one["predicted"][metric]) / len(one["predicted"][metric]), 6)
            for one in found
        ]
        for metric in ("comprehensiveness", "sufficiency")
    }


def _written(model: str, found: list[Mapping[str, Any]]) -> dict[str, list[float]]:
    morf, lerf = ([area(list(one[name].values())) for one in found] for name in ("MoRF", "LeRF"))
    between = [round(least - most, 4) for most, least in zip(morf, lerf, strict=True)]
    shares = {name: [round(one[name], 4) for one in found] for name in ("found", "mass")}
    return {f"{name}, {model}": one for name, one in {**shares, "LeRF − MoRF": between}.items()}


def _metrics(found: list[Mapping[str, Any]]) -> dict[str, list[float]]:
    """By metric without its options, and condition."""
    return {
        f"{metric.partition(':')[0]} {condition}".strip(): [
            float(f"{one[metric][condition]:.6g}") for one in found
        ]
        for metric, of_condition in found[0].items()
        for condition in of_condition
    }


OF_BENCHMARK: Final[Mapping[str, Callable[[list[Mapping[str, Any]]], dict[str, list[float]]]]] = {
    "perturbation": _areas,
    "segmentation": _agreements,
    "grid-pointing": _localisations,
    "rationale": _scores,
    "text-perturbation": _drops,
    **{f"letters-{model}": partial(_written, model) for model in ("gpt2", "llama")},
}
"""By benchmark: what a method's records say, as a number for each example, by metric."""


def collect_cost(file: Path) -> Path:
    """Write what ``benchmark speed --memory`` found on its first workload, without machine paths.

    Args:
        file: the JSON that it writes.

    Returns:
        The file.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    costs = {one["method"]: one for one in found["results"][0]["costs"]}
    about = {
        "machine": found["machine"],
        "cpu_time": found["cpu_time"],
        "workload": found["results"][0]["workload"],
        "values": {
            method: {
                "ratio": round(costs[name]["ratio"], 3),
                "megabytes": round(costs[name]["megabytes"], 1),
            }
            for method, name in TIMED.items()
        },
    }
    target = MEASURED / "cost.json"
    target.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return target


def figures(columns: Sequence[Column] = COLUMNS) -> dict[tuple[str, str], Figure]:
    """By method and metric: the mean over the examples, with the paired difference."""
    found = {}
    heavy = {column.metric for column in columns if column.heavy}
    for benchmark in dict.fromkeys(column.benchmark for column in measured_of(columns)):
        values = measured(benchmark)["values"]
        means = MethodMeans(list(METHODS), reference=REFERENCE)
        for index in range(count(benchmark)):
            means.add(
                {
                    method: {
                        (metric, ""): _logarithm(one[index]) if metric in heavy else one[index]
                        for metric, one in of.items()
                    }
                    for method, of in values.items()
                }
            )
        found |= {(figure.method, figure.metric): figure for figure in means.figures()}
    return found


def _logarithm(value: float) -> float:
    return math.log10(max(value, 1e-12))


def measured_of(columns: Sequence[Column]) -> list[Column]:
    """Those that are measured."""
    return [column for column in columns if (MEASURED / f"{column.benchmark}.json").exists()]


def measured(name: str) -> dict[str, Any]:
    """A file of ``docs/methods_compared/``."""
    return json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))


def count(benchmark: str) -> int:
    """How many examples a benchmark has."""
    return len(measured(benchmark)["examples"])


def table(name: str = "benchmarks") -> str:
    """A table as CSV: means, in a type that says how they compare with the reference."""
    columns = measured_of(TABLES[name])
    found = figures(columns)
    values = {column.benchmark: measured(column.benchmark)["values"] for column in columns}
    with_cost = name == "benchmarks" and (MEASURED / "cost.json").exists()
    costs = measured("cost")["values"] if with_cost else {}

    def cell(method: str, column: Column) -> str:
        figure = found.get((method, column.metric))
        if figure is None:
            return ""
        text = f"{figure.value:.{column.digits}f} ± {figure.standard_error:.{column.digits}f}"
        if column.heavy:
            median = statistics.median(values[column.benchmark][method][column.metric])
            median = float(f"{median:.2g}")
            text = f"{median:,.0f}" if median >= 100 else f"{median:g}"
        difference, error = figure.difference, figure.difference_standard_error
        if column.larger is None or difference is None or error is None:
            return text
        better = difference if column.larger else -difference
        if column.zero:
            better = abs(figure.value - difference) - abs(figure.value)
        return f"**{text}**" if better > 2 * error else f"*{text}*" if better > -2 * error else text

    heads = [f"{column.title}, n = {count(column.benchmark)}" for column in columns]
    rows = [["method", *heads, *[COST] * with_cost]]
    for method in METHODS:
        cells = [cell(method, column) for column in columns]
        if with_cost:
            cells.append(f"{costs[method]['ratio']:.1f}" if method in costs else "")
        if any(cells):
            rows.append([f"`{method}`", *cells])
    return as_csv(rows)


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """The rows of a table, its heads first."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def filled(page: str, found: Mapping[str, str]) -> str:
    """A page with its tables replaced, each between ``<!-- NAME -->`` and ``<!-- end -->``."""
    for name, table in found.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, begun, rest = page.partition(start)
        _, ended, after = rest.partition(end)
        if not begun or not ended:
            raise ValueError(f"the page has no place for a table: {start}{end}")
        page = f"{before}{start}{table}\n{end}{after}"
    return page


def main() -> None:
    """Run a step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    collecting = steps.add_parser("collect", help="records to docs/methods_compared/")
    benchmarks = dict.fromkeys(column.benchmark for one in TABLES.values() for column in one)
    collecting.add_argument("benchmark", choices=list(benchmarks))
    collecting.add_argument("folders", nargs="+", type=Path)
    costing = steps.add_parser("collect-cost", help="the JSON of benchmark speed --memory")
    costing.add_argument("file", type=Path)
    steps.add_parser("table", help="docs/methods_compared/ to its tables")
    given = parser.parse_args()
    if given.step == "collect":
        print(collect(given.benchmark, given.folders))
    elif given.step == "collect-cost":
        print(collect_cost(given.file))
    else:
        for name in (one for one in TABLES if measured_of(TABLES[one])):
            (MEASURED / f"{name}.csv").write_text(table(name), encoding="utf-8")


if __name__ == "__main__":
    main()
