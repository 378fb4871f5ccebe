"""Benchmarks of attribution methods: those of the paper, on one machine or many.

    >>> from captum_transformer_lrp.benchmarks import perturbation

Each function runs on a stream of examples, writes what it finds as it goes, goes on where an
earlier run of the same settings stopped, and shares the work among the processes of ``torchrun``.
"""

from captum_transformer_lrp.benchmark_options import ABLATIONS, PAPER
from captum_transformer_lrp.benchmarks.errors import BenchmarkError, UnreadableExampleError
from captum_transformer_lrp.benchmarks.generation import Generation, Prompt, generation
from captum_transformer_lrp.benchmarks.grid_pointing import GridPointing, grid_pointing
from captum_transformer_lrp.benchmarks.images import LabelledImage, labelled_images
from captum_transformer_lrp.benchmarks.methods import NAMES
from captum_transformer_lrp.benchmarks.metrics import METRICS, MapMetrics, map_metrics
from captum_transformer_lrp.benchmarks.perturbation import Perturbation, perturbation
from captum_transformer_lrp.benchmarks.quantus import quantus_explainer
from captum_transformer_lrp.benchmarks.rationale import RationaleBenchmark, rationale
from captum_transformer_lrp.benchmarks.results import Curve, Figure, Result, Summary
from captum_transformer_lrp.benchmarks.runner import Benchmark, run
from captum_transformer_lrp.benchmarks.segmentation import Segmentation, segmentation
from captum_transformer_lrp.benchmarks.text_metrics import TEXT_METRICS, TextMetrics, text_metrics
from captum_transformer_lrp.benchmarks.text_perturbation import (
    TextPerturbationBenchmark,
    text_perturbation,
)

__all__ = [
    "ABLATIONS",
    "METRICS",
    "NAMES",
    "PAPER",
    "TEXT_METRICS",
    "Benchmark",
    "BenchmarkError",
    "Curve",
    "Figure",
    "Generation",
    "GridPointing",
    "LabelledImage",
    "MapMetrics",
    "Perturbation",
    "Prompt",
    "RationaleBenchmark",
    "Result",
    "Segmentation",
    "Summary",
    "TextMetrics",
    "TextPerturbationBenchmark",
    "UnreadableExampleError",
    "generation",
    "grid_pointing",
    "labelled_images",
    "map_metrics",
    "perturbation",
    "quantus_explainer",
    "rationale",
    "run",
    "segmentation",
    "text_metrics",
    "text_perturbation",
]
