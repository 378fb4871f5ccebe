"""How Sphinx builds the site, `make docs`; nothing that a page shows comes from the network.

The folder of sources is the repository, so that a link works alike on the site and in the checkout.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "captum_transformer_lrp"
release = importlib.metadata.version("captum-transformer-lrp")
author = copyright = "the captum_transformer_lrp authors"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "captum_transformer_lrp/examples/README.md",
    "docs/*.md",
    "docs/api/*.md",
    "tutorials/*.ipynb",
]
default_role = "code"  # docstrings write `names` as Markdown does

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False

autodoc_default_options = {
    "members": True,
    "inherited-members": "Attribution, BaseException, PropagationRule, tuple",
    "exclude-members": "attribute_future",  # of Captum, implemented by none
}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # tutorials are committed with their outputs
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # none is used, and they are on a CDN
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_selector = "div:not(.output) > div.highlight > pre"

# Under the README, as the sidebar's contents; GitHub would show it as code.
CONTENTS = """

```{toctree}
:hidden:
:caption: Learn

tutorials/1_image_classifier
tutorials/2_text_classifier
tutorials/3_inside
tutorials/4_beyond_classification
tutorials/5_benchmark_your_model
tutorials/6_llm_attribution
docs/results
docs/generation
docs/command_line
docs/troubleshooting
```

```{toctree}
:hidden:
:caption: Methods

docs/methods
docs/beyond_classification
docs/how_it_works
docs/rules
docs/rollout
docs/epsilon
```

```{toctree}
:hidden:
:caption: Measured

docs/models
docs/sweep_timm
docs/sweep_transformers
docs/benchmarks
docs/speed
docs/compiled
```

```{toctree}
:hidden:
:caption: API reference

docs/api/results
docs/api/attribution
docs/api/rules
docs/api/visualization
docs/api/models
docs/api/benchmarks
```

```{toctree}
:hidden:
:caption: The project

docs/README
docs/contributing
captum_transformer_lrp/examples/README
CHANGELOG
```
"""


def write_sweeps(app: Sphinx) -> None:
    """Write the tables of the sweeps from their data; they are too long to be committed."""
    from tests.sweep.results import read
    from tests.sweep.tables import write_table

    for suite in ("timm", "transformers"):
        found = read(ROOT / "docs" / "sweep" / f"{suite}.jsonl")
        write_table(ROOT / "docs" / f"sweep_{suite}.md", suite, found)


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Give the README the sidebar's contents; lead to tables or show them, not their data."""
    if page == root_doc:
        source[0] += CONTENTS
    source[0] = re.sub(r"\(sweep/(\w+)\.jsonl\)", r"(sweep_\1.md)", source[0])
    shown = "```{csv-table}\n:file: \\1\n:header-rows: 1\n:class: figures\n```"
    source[0] = re.sub(r"^\[[^]]+\]\((\S+\.csv)\)$", shown, source[0], flags=re.MULTILINE)


def forget_builtins(app: Sphinx, env: BuildEnvironment) -> None:
    """Leave out of viewcode's index what has no source: an alias of `tuple` is of `builtins`."""
    env._viewcode_modules = {name: found for name, found in env._viewcode_modules.items() if found}


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Let the README be what a server shows for the folder."""
    if not error and app.builder.format == "html":
        shutil.copy(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))


def show_math(self: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """A formula as MathML, which browsers draw without scripts and fonts from elsewhere."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    self.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_sweeps)
    app.connect("source-read", add_contents)
    app.connect("env-updated", forget_builtins)
    app.connect("build-finished", add_index)
    app.add_html_math_renderer("mathml", (show_math, None), (show_math, None))
