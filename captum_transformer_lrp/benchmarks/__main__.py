"""`python -m captum_transformer_lrp.benchmarks`, which `torchrun` starts in every process."""

from __future__ import annotations

from captum_transformer_lrp.cli.benchmark import benchmark

if __name__ == "__main__":
    benchmark(prog_name="captum-transformer-lrp benchmark")
