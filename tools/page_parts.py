"""Parts of a page that a tool writes: what stands between `<!-- NAME -->` and `<!-- /NAME -->`."""

import re
from pathlib import Path


def replace_part(page: Path, name: str, text: str) -> None:
    """Writes a part of a page anew. Raises ValueError where the page has no such part, or two."""
    whole = page.read_text(encoding="utf-8")
    new, found = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda old: f"{old[1]}{text}\n{old[2]}", whole, flags=re.DOTALL
    )
    if found != 1:
        raise ValueError(f"{page}: {found} parts are called {name!r}, one is needed")
    page.write_text(new, encoding="utf-8")
