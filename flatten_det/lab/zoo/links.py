"""Relative links of Markdown files."""

import re
from collections.abc import Container
from pathlib import Path

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#", flags=re.IGNORECASE)


def dead_links(page: Path, text: str, planned: Container[Path] = ()) -> list[str]:
    """The relative links of a page that lead to no file or folder.

    Args:
        page: where the page is, or will be.
        text: its content.
        planned: resolved paths of files that will exist.
    """
    dead = []
    for link in dict.fromkeys(_LINK.findall(text)):
        target = (page.parent / link.split("#")[0]).resolve()
        if not _ELSEWHERE.match(link) and not target.exists() and target not in planned:
            dead.append(link)
    return dead
