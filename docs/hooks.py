"""Lets the site's pages link to files of the repository outside docs/, by the same relative paths as on a code host.

``[the figures](../benchmarks/results/x.json)`` copies that file into the site. A path that does not exist stays as it
is, and the strict build fails on it.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "repository"  # of the site, for files from outside docs/
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")  # that the navigation names
LINK = re.compile(r"(?<=\]\()\.\./([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files that pages link to."""
    linked = {path for page in Path(config.docs_dir).glob("*.md") for path in LINK.findall(page.read_text())}
    for path in sorted(linked.union(PAGES)):
        if (ROOT / path).is_file():
            files.append(File.generated(config, f"{FOLDER}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the links at the copies."""

    def copy(link: re.Match) -> str:
        uri = f"{FOLDER}/{link[1]}"
        return uri if files.get_file_from_path(uri) else link[0]

    return LINK.sub(copy, markdown)
