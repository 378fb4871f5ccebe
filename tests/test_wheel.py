"""What pip installs: the wheel has all that the package needs, and works without the checkout."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "captum_transformer_lrp"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, because building leaves files beside them."""
    sources = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(ROOT / PACKAGE, sources / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    return sources


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation nothing is downloaded: setuptools is among the tests' requirements.
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(sources)]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *build], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a fresh environment that the wheel was installed into."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, system_site_packages=True, with_pip=True)
    # What runs the tests may itself be an environment, which a new one does not inherit. Folders
    # named in a .pth file come after the environment's own; editable installs in them, which need
    # .pth files of their own, do not come along.
    inside = {"base": str(folder), "platbase": str(folder)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", vars=inside))
    (site_packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    binaries = Path(sysconfig.get_path("scripts", "venv", vars=inside))
    install = ["install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run([binaries / "python", "-m", "pip", "--quiet", *install], check=True)
    return binaries


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = subprocess.run(
        ["git", "ls-files", "-z", PACKAGE], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    assert found == set(listed.stdout.strip("\0").split("\0"))
    # Said once more by name, should a file be missing in both.
    assert f"{PACKAGE}/py.typed" in found
    assert any(name.endswith(".html.jinja") for name in found)
    assets = {Path(name).name for name in found if f"{PACKAGE}/examples/assets/" in name}
    assert {"scene_classifier.safetensors", "tokenizer.json", "elephant-zebra.mask.png"} <= assets


def test_an_editable_install_is_a_path_which_type_checkers_follow(
    sources: Path, tmp_path: Path
) -> None:
    """They run no code, so that they find nothing through a hook of Python's imports."""
    build = f"from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=sources, capture_output=True, check=True)
    (built,) = tmp_path.glob("*.whl")
    with ZipFile(built) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    (path,) = (text for name, text in inside.items() if name.endswith(".pth"))
    assert Path(path.decode().strip()).resolve() == sources.resolve()
    assert not any(name.endswith(".py") for name in inside)


def test_the_wheel_is_small_and_an_index_would_take_it(wheel: Path) -> None:
    assert wheel.stat().st_size < 8_000_000
    pytest.importorskip("twine")
    check = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_core_installs_what_it_imports_and_extras_the_rest(wheel: Path) -> None:
    (metadata,) = importlib.metadata.distributions(path=[str(wheel)])
    needed = [Requirement(one) for one in metadata.requires or []]
    core = {one.name for one in needed if one.marker is None}
    assert {"captum", "torch", "transformers", "timm", "matplotlib"} <= core
    assert not core & {"typer", "rich", "h5py", "scikit-learn", "sphinx", "pytest"}
    extras = {"cli", "benchmarks", "docs", "test", "dev"}
    assert set(metadata.metadata.get_all("Provides-Extra", [])) == extras


def test_the_citation_and_the_changelog_know_the_version(wheel: Path) -> None:
    (metadata,) = importlib.metadata.distributions(path=[str(wheel)])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == metadata.version
    assert citation["preferred-citation"]["year"] == 2021
    dated = f"## [{metadata.version}] - {citation['date-released']}"
    assert dated in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_demo_works_where_the_checkout_is_not(scripts: Path, tmp_path: Path) -> None:
    # No folder of the checkout on the path, no hub, and no bytecode of this run.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    where = subprocess.run(
        [scripts / "python", "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(scripts.parent)

    demo = subprocess.run(
        [scripts / "captum-transformer-lrp", "demo", "--output", "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert demo.returncode == 0, demo.stderr
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "elephant" in page
    assert len(list((tmp_path / "out").glob("*.png"))) > 5
    assert (tmp_path / "out" / "one-picture-two-classes-every-method.png").is_file()
