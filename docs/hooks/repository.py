"""Pages of the site that stand elsewhere in the repository: its README, the cards of the released models and so on.

Every page keeps the links that work on a Git host, relative to where its file stands; here they become links between
pages of the site, which a strict build then checks. Figures that come in a light and a dark form follow the reader's
choice on the page.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
CARDS = "models_zoo/released"
CARDS_IN_NAVIGATION = "Released models"
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "CITATION.cff",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
}
"""Files of the repository, and where they are on the site."""
SHORT = 30
"""Characters of code in a line of text that is not broken at its hyphens."""

_FENCED = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")
_CODE = re.compile(r"`[^`\n]+`")
_PICTURE = re.compile(
    r'<picture>\s*<source[^>]*srcset="(?P<dark>[^"]+)">\s*<img alt="(?P<alt>[^"]*)"\s*'
    r'src="(?P<light>[^"]+)" width="(?P<width>\d+)">\s*</picture>'
)


def site_names() -> dict[str, str]:
    """Return where each file of the repository that is not below docs/ is on the site."""
    names = dict(ELSEWHERE)
    for card in sorted(ROOT.glob(f"{CARDS}/*/README.md")):
        names[f"{CARDS}/{card.parent.name}/README.md"] = f"zoo/{card.parent.name}.md"
        for picture in sorted(card.parent.glob("*.png")):
            names[f"{CARDS}/{card.parent.name}/{picture.name}"] = f"zoo/{card.parent.name}/{picture.name}"
    return names


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the cards of all released models into the navigation."""
    cards = [name for name in site_names().values() if name.startswith("zoo/") and name.endswith(".md")]
    entry = next(item for item in entries(config.nav) if CARDS_IN_NAVIGATION in item)
    entry[CARDS_IN_NAVIGATION] = cards
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that stand elsewhere."""
    for source, name in site_names().items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    name = page.file.src_uri
    if name == "index.md":
        page.meta.setdefault("hide", ["navigation"])  # it has no siblings
    sources = {site: source for source, site in site_names().items()}
    return rewritten(markdown, sources.get(name, f"docs/{name}"), name)


def rewritten(markdown: str, source: str, name: str) -> str:
    """Return the text of the file `source` of the repository as the page `name` of the site has it."""
    names = site_names()

    def target(link: str) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        site = path.removeprefix("docs/") if path.startswith("docs/") else names.get(path)
        return link if site is None else posixpath.relpath(site, posixpath.dirname(name) or ".")

    def picture(match: re.Match[str]) -> str:
        alt = " ".join(match["alt"].split())
        return "\n".join(
            f"![{alt}]({match[form]}#only-{form}){{ width={match['width']} }}" for form in ("light", "dark")
        )

    def code(match: re.Match[str]) -> str:
        text = match[0].replace("\\|", "|")  # a Git host wants these escaped in tables, and the site does not
        return f"{text}{{ .whole }}" if "-" in text and len(text) <= SHORT else text

    parts = _FENCED.split(markdown)
    for i in range(0, len(parts), 2):  # the others are code
        text = _PICTURE.sub(picture, parts[i])
        text = _LINK.sub(lambda match: target(match[1]), text)
        parts[i] = "".join(line if line.startswith("#") else _CODE.sub(code, line) for line in text.splitlines(True))
    return "".join(parts)


def entries(nav: Any) -> list[dict[str, Any]]:
    """Return the named entries of the navigation, those within others included."""
    named = [item for item in nav if isinstance(item, dict)]
    inner = [value for item in named for value in item.values() if isinstance(value, list)]
    return named + [item for value in inner for item in entries(value)]
