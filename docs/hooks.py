"""Show the roles of Sphinx in docstrings, such as :class:`~flatten_det.Name`, as the name alone."""

import re

ROLE = re.compile(r":(?:class|func|mod|meth|attr):<code>~?(?:[\w.]+\.(?=\w))?([^<]+)</code>")


def on_page_content(html: str, **_) -> str:
    """Called by MkDocs with the HTML of each page."""
    return ROLE.sub(r"<code>\1</code>", html)
