"""The how-to pages do what they say: every `docs/howto/*.md` is executed, from top to bottom, in an empty folder.

What a page may hold:
- ```` ```python ````: run in order, all in one namespace. A block that begins with `# name.py` is written to that file instead.
- ```` ```sh ````: lines `python experiments/SCRIPT.py …` are read by the script's own command line, so that a flag that is not
  there fails; `python -m …` and other lines are left alone. ```` ```sh run ```` also runs them, in this process.
- ```` ```diff rlhf_jax/… ````: an edit of the package, made in a copy of it, as is a ```` ```python ```` file in `rlhf_jax/` or
  `experiments/`. From then on ```` ```sh run ```` runs with this copy, as ```` ```python edited ```` does, in a process of its own.
- other fences (```` ```json name.json ````, with a file name after the language) are written to that file; without a name they
  are left alone.
"""

import contextlib
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxtyping
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "docs" / "howto"
PAGES = sorted(FOLDER.glob("*.md"))
EDITED = ("rlhf_jax", "experiments")
"""Folders of which a page's edits are made in a copy."""
SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int
    """Of its first line of code, from 1."""
    language: str
    rest: str
    """What follows the language: `run`, `edited`, or a file's name."""
    code: str

    @property
    def file(self) -> str | None:
        """The file that the block is, or is an edit of."""
        if self.language == "python":
            named = re.match(r"# ([\w/]+\.py)\n", self.code)
            return named[1] if named else None
        return self.rest or None if self.language not in ("sh", "") else None


def blocks(page: str) -> Iterator[Block]:
    """All fenced blocks in order."""
    for match in re.finditer(r"^```(\w*) *(.*)\n((?:.*\n)*?)^```$", page, re.MULTILINE):
        yield Block(page[: match.start(3)].count("\n") + 1, match[1], match[2].strip(), match[3])


def commands(code: str) -> Iterator[tuple[str, list[str]]]:
    """(script, arguments) of every `python experiments/SCRIPT.py …`; a backslash continues a line."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if len(words) > 1 and words[0] == "python" and words[1].startswith("experiments/"):
            yield Path(words[1]).stem, words[2:]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program_cache: Path) -> Iterator[Path]:
    """An empty current folder, from which modules can be imported; nothing of it is left afterwards.

    Types are checked where the parts are tested, as little here as where a reader follows the page.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    modules, settings = set(sys.modules), {name: getattr(jax.config, name) for name in SETTINGS}
    for name, value in zip(SETTINGS, (str(program_cache), 0), strict=True):
        jax.config.update(name, value)
    unchecked = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield tmp_path
    jaxtyping.config.update("jaxtyping_disable", unchecked)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    for name, value in settings.items():
        jax.config.update(name, value)


def test_there_are_pages() -> None:
    assert PAGES


@pytest.mark.parametrize(
    "page",
    # Each runs the preset `debug` of a main script; one does so in every run of the suite.
    [pytest.param(page, marks=() if page.stem == "your_own_dialogues" else pytest.mark.slow) for page in PAGES],
    ids=lambda page: page.stem,
)
def test_page_does_what_it_says(page: Path, empty: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "howto"}
    for block in blocks(page.read_text(encoding="utf-8")):
        where = f"{page.name}, line {block.line}"
        if block.file is not None:
            write(block, empty, where)
        elif block.language == "python" and block.rest == "edited":
            run_edited("-c", block.code, empty=empty, where=where)
        elif block.language == "python":
            # Blank lines in front, so that a traceback names the page's own line.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)  # noqa: S102
        elif block.language == "sh":
            for script, arguments in commands(block.code):
                if (empty / "copy").exists():
                    assert block.rest == "run", f"{where}: after an edit, commands are run"
                    run_edited(f"copy/experiments/{script}.py", *arguments, empty=empty, where=where)
                else:
                    start(script, arguments, run=block.rest == "run", where=where)


def write(block: Block, empty: Path, where: str) -> None:
    """Writes the file of a block, or makes its edit; those of the package in a copy, out of this process's way."""
    assert block.file is not None
    file = empty / block.file
    if block.file.startswith(EDITED):
        copy = empty / "copy"
        for folder in EDITED:
            if not (copy / folder).exists():
                shutil.copytree(REPOSITORY / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        file = copy / block.file
    file.parent.mkdir(parents=True, exist_ok=True)
    if block.language == "diff":
        edit(file, block.code.splitlines(keepends=True), where)
    else:
        file.write_text(block.code, encoding="utf-8")
    importlib.invalidate_caches()


def edit(file: Path, lines: list[str], where: str) -> None:
    """Replaces the lines marked ` ` and `-` by those marked ` ` and `+`."""
    text = file.read_text(encoding="utf-8")
    old = "".join(line[1:] for line in lines if line[0] in " -")
    assert text.count(old) == 1, f"{where}: {file.name} does not hold these lines once:\n{old}"
    file.write_text(text.replace(old, "".join(line[1:] for line in lines if line[0] in " +")), encoding="utf-8")


def run_edited(*arguments: str, empty: Path, where: str) -> None:
    """Starts Python with the copy of the package, in the page's folder."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(empty / "copy" / folder) for folder in ("", "experiments")),
        },
        cwd=empty,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{where}:\n{ended.stdout}{ended.stderr}"


def start(script: str, arguments: list[str], *, run: bool, where: str) -> None:
    """Reads the command line as the script does, and runs it."""
    module = importlib.import_module(script)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda argv: setattr(sys, "argv", argv), sys.argv)
        sys.argv = [f"experiments/{script}.py", *arguments]
        try:
            config = module.command_line(arguments)
        except SystemExit as error:
            pytest.fail(f"{where}: {script}.py does not take {shlex.join(arguments)} ({error.code})")
        if run:
            module.main(config)
