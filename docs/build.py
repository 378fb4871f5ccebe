"""Builds the documentation as HTML; run as ``python docs/build.py --output site``.

The pages of this folder, the README, the tutorials with their outputs, and the API reference that
pdoc makes of the docstrings. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import markdown2
import pdoc

ROOT = Path(__file__).parent.parent
EXTRAS = ["fenced-code-blocks", "tables", "header-ids", "code-friendly", "strike"]
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 52rem; padding: 1rem; background: #fff; color: #111;
       font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }}
nav {{ font-size: .9rem; border-bottom: 1px solid #ddd; padding-bottom: .5rem; }}
pre {{ background: #f5f5f5; padding: .75rem; overflow-x: auto; font-size: .85rem;
      line-height: 1.4; }}
code {{ font-size: .9em; }}
pre code {{ font-size: 1em; }}
.output pre {{ background: #fff; border-left: 3px solid #ccc; }}
img {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid #ddd; }}
a {{ color: #005a9c; }}
</style>
</head>
<body>
<nav><a href="{up}index.html">captum_transformer_lrp</a> ·
<a href="{up}docs/index.html">Documentation</a> ·
<a href="{up}api/captum_transformer_lrp.html">API</a></nav>
{body}
</body>
</html>
"""


def page_of(markdown: str, up: str) -> str:
    """A page of Markdown; links to other pages lead to their HTML."""
    body = str(markdown2.markdown(markdown, extras=EXTRAS))
    body = body.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
    title = re.search(r"^# (.+)$", markdown, re.MULTILINE)
    return PAGE.format(
        title=html.escape(title[1] if title else "captum_transformer_lrp"),
        up=up,
        body=re.sub(r'href="([^"]+)"', lambda found: f'href="{_linked(found[1])}"', body),
    )


def _linked(address: str) -> str:
    """Where a link of the repository leads on the site."""
    path, hash_, anchor = address.partition("#")
    if "://" in path or not path:
        return address
    if path.endswith("README.md"):
        path = path.removesuffix("README.md") + "index.html"
    for suffix in (".md", ".ipynb"):
        if path.endswith(suffix):
            path = path.removesuffix(suffix) + ".html"
    source = re.fullmatch(r"((?:\.\./)*)(captum_transformer_lrp/.+)\.py", path)
    if source:
        path = f"{source[1]}api/{source[2]}.html"
    return path + hash_ + anchor


def page_of_notebook(notebook: dict[str, Any], up: str) -> str:
    """A tutorial with its code, texts and pictures."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_output(output) for output in cell["outputs"]]
    return page_of("\n\n".join(parts), up)


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        picture = "data:image/png;base64," + data["image/png"].strip()
        content = f'<img alt="the picture that this code draws" src="{picture}">'
    else:
        text = "".join(output.get("text", data.get("text/plain", "")))
        # A blank line would end the block of HTML inside Markdown.
        content = f"<pre>{html.escape(text)}</pre>".replace("\n\n", "\n&#8203;\n")
    return f'<div class="output">{content}</div>'


def build(output: Path) -> None:
    """Write the site into a folder, which is made."""
    for folder in ("docs", "tutorials"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "docs" / "images", output / "docs" / "images", dirs_exist_ok=True)
    pages = {ROOT / "README.md": output / "index.html"}
    for file in sorted((ROOT / "docs").glob("*.md")):
        name = "index" if file.stem == "README" else file.stem
        pages[file] = output / "docs" / f"{name}.html"
    for source, page in pages.items():
        up = "" if page.parent == output else "../"
        page.write_text(page_of(source.read_text(encoding="utf-8"), up), encoding="utf-8")
    for file in sorted((ROOT / "tutorials").glob("*.ipynb")):
        notebook = json.loads(file.read_text(encoding="utf-8"))
        page = output / "tutorials" / f"{file.stem}.html"
        page.write_text(page_of_notebook(notebook, "../"), encoding="utf-8")
    readme = ROOT / "captum_transformer_lrp" / "examples" / "README.md"
    about_examples = output / "captum_transformer_lrp" / "examples" / "index.html"
    about_examples.parent.mkdir(parents=True, exist_ok=True)
    about_examples.write_text(
        page_of(readme.read_text(encoding="utf-8"), "../../"), encoding="utf-8"
    )


def build_reference(output: Path) -> None:
    """Write the API reference into a folder."""
    pdoc.render.configure(docformat="google", math=True)
    pdoc.pdoc("captum_transformer_lrp", output_directory=output)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Build the documentation as HTML.")
    parser.add_argument("--output", type=Path, default=ROOT / "site")
    output = parser.parse_args().output
    build(output)
    build_reference(output / "api")
    print(f"wrote {output / 'index.html'}")


if __name__ == "__main__":
    main()
