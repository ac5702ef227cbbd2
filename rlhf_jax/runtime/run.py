"""The run directory: one configuration, one process at a time, nothing ever overwritten by another run.

config.json    configuration, commit, versions, devices, provenance of the data
metrics.jsonl  one object per log step            checkpoints/STAGE/STEP/  states
samples.jsonl  one object per reply that an evaluation during training drew
results.json, report.md, report.html, tensorboard/, profile/   written by the stages that make them
"""

import contextlib
import dataclasses
import fcntl
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import jax

from rlhf_jax.parallel import processes
from rlhf_jax.runtime.files import RunError, as_json, notice, read_object, storage_errors, write_json
from rlhf_jax.runtime.machine import environment

Tracker = Literal["tensorboard", "wandb"]
MADE_BY = "made_by.json"
"""Names the script that a folder of summaries belongs to; a run directory has `config.json`."""
_SHOWN = 8
"""Differences between two configurations that a message lists."""


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """A run directory held by this process; a `with` block (or `close`) lets the next process have it."""

    path: Path
    config: Mapping[str, Any]
    resumed: bool
    """True where the directory was there before and is continued."""
    lock: int
    """Descriptor of the lock file; the system frees it even when the process is killed."""
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Where metrics go besides `metrics.jsonl`."""
    profile: tuple[str, ...] = ()
    """Stages that write a trace of a few of their updates."""
    samples: int = 0
    """Validation contexts that a policy answers at every evaluation of its training; the replies go to `samples.jsonl`."""
    shared: Path | None = None
    """The run directory itself, where `path` is a later process's own folder inside it."""

    @property
    def checkpoints(self) -> Path:
        """Folder with one folder of checkpoints per stage; that of the run, whatever the process."""
        return (self.shared or self.path) / "checkpoints"

    def record(self, **facts: Any) -> None:
        """Adds facts to `config.json`, e.g. `data=corpus.provenance`, `mesh=...`; None of them may change later.

        Raises: RunError where a continued run finds another value, e.g. other data files under the same path.
        """
        facts = as_json(facts, "config.json")
        stored = check_facts(self.path, facts)
        if any(name not in stored for name in facts):
            write_json(self.path / "config.json", {**stored, **facts})

    def close(self) -> None:
        """Frees the directory for another process."""
        with contextlib.suppress(OSError):
            os.close(self.lock)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_facts(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` of a run directory, whose facts of these names must have these values where it has them.

    Raises: RunError naming what differs.
    """
    stored = read_object(path / "config.json")
    for name, value in facts.items():
        if name in stored and stored[name] != value:
            changes = "; ".join(_differences(stored[name], value, name))
            raise RunError(
                f"{path} was started with other facts ({changes}): put the old ones back or choose another "
                "run directory; nothing was overwritten"
            )
    return stored


def claim(path: Path | str, script: str, *, known_by: str | None = None) -> None:
    """Makes a folder of summaries that belongs to `script`, or finds it its own; call before anything is written there.

    Args:
      path: where a study writes `results.json`, `report.md`, a folder a seed …; made with its parents.
      script: file name of the script, for example `sweep_window.py`.
      known_by: a name that nobody else gives: how the script knows folders that its older versions made.
    Raises: RunError for a folder of another script, a run directory, a file, or a folder of other things; nothing there
      was changed.
    """
    path = _named_folder(path)
    maker = script if known_by is not None and (path / known_by).exists() else _maker(path)
    if not (path / MADE_BY).exists() and path.is_dir() and all(one.name.startswith("seed-") for one in path.iterdir()):
        # Seeds alone: there is no summary to lose, and each is compared with its own configuration when it is opened.
        maker = script
    if maker is None and path.is_dir() and (found := _contents(path)):
        raise RunError(
            f"{path} holds {found} and was not made by {script}: choose an empty or new folder; nothing was overwritten"
        )
    if maker not in (None, script):
        raise RunError(
            f"{path} belongs to {maker} and holds {_contents(path)}; {script} needs a folder of its own: choose another "
            "--run-dir or folder; nothing was overwritten"
        )
    if (path / MADE_BY).exists():
        return
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    # Seeds that run side by side all write the same few bytes; the last one stays.
    own = path / f"{MADE_BY}.{os.getpid()}"
    write_json(own, {"script": script})
    own.replace(path / MADE_BY)


def _named_folder(path: Path | str) -> Path:
    if Path(path) == Path():
        raise RunError("the run directory has no name of its own ('' or '.'): give it one, for example runs/mine")
    if Path(path).exists() and not Path(path).is_dir():
        raise RunError(f"run directory {path} is a file: choose another run directory")
    return Path(path)


def _maker(path: Path) -> str | None:
    """The script that made a folder, as far as the folder says it; folders of older versions say it in other places."""
    if (path / MADE_BY).exists():
        return str(read_object(path / MADE_BY, "script")["script"])
    for config in (path / "config.json", *sorted(path.glob("seed-*/config.json"))):
        if config.exists():
            command = read_object(config).get("command")
            return Path(str(command[1])).name if isinstance(command, list) and len(command) > 1 else "another script"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if named := re.search(r"python experiments/(\w+\.py)", (path / "report.md").read_text(encoding="utf-8")):
            return named[1]
    return None


def _contents(path: Path) -> str:
    """The first few names in a folder; empty where there are none but a log or a lock."""
    names = sorted(entry.name for entry in path.iterdir() if entry.name not in ("lock", MADE_BY))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def open_run(
    path: Path | str,
    config: Any,
    *,
    trackers: Sequence[Tracker] = ("tensorboard",),
    profile: Sequence[str] = (),
    samples: int = 0,
    volatile: Sequence[str] = ("run_dir", "trackers", "mesh", "processes", "profile", "samples"),
    wait: bool = False,
) -> RunDirectory:
    """Creates a run directory, or continues one that was started with the same configuration.

    Of several processes each has a folder of its own, the first the run directory and the others one inside it
    (`processes/1` …): they prepare, log and report the same things, and only checkpoints are common.

    Args:
      path: the directory; made with its parents.
      config: a dataclass or a mapping; what is stored in `config.json` and compared on continuation.
      trackers: where metrics go besides `metrics.jsonl`.
      profile: stages to trace, each process into its own folder.
      samples: validation contexts that are answered at every evaluation during training; 0 is none.
      volatile: names of top-level fields that may change between start and continuation without changing any number
        (the mesh: by more than rounding; it is stored with the environment, and a change is told).
      wait: where another process works in the directory, wait until it is done instead of giving up.
    Returns: the directory, locked for this process until closed.
    Raises: RunError for a directory of another configuration (each differing field named), one that is not a run
      directory, one in use, no permission, or a full disk; in all cases nothing there was changed.
    """
    path = _named_folder(path)
    fields = as_json(config)
    stored_config = {name: value for name, value in fields.items() if name not in volatile}
    here = environment()
    if max(fields.get("mesh", {}).values(), default=1) > 1:
        here["mesh"] = fields["mesh"]
    if not processes.several():
        opened_alone = _open(path, stored_config, here, wait)
        return dataclasses.replace(opened_alone, trackers=tuple(trackers), profile=tuple(profile), samples=samples)
    # The first opens alone: what it refuses, nobody may begin.
    opened: list[RunDirectory] = []
    processes.lead_does(lambda: opened.append(_open(path, stored_config, here, wait)))
    if processes.leads():
        return dataclasses.replace(opened[0], trackers=tuple(trackers), profile=tuple(profile), samples=samples)
    own = path / "processes" / str(jax.process_index())
    opened_own = _open(own, stored_config, here, wait)
    return dataclasses.replace(opened_own, trackers=(), profile=tuple(profile), samples=samples, shared=path)


def _open(path: Path, stored_config: Mapping[str, Any], here: Mapping[str, Any], wait: bool) -> RunDirectory:
    config_file = path / "config.json"
    resumed = config_file.exists() and _begun(path)
    if resumed:
        _check_same(path, read_object(config_file), stored_config)
    elif not config_file.exists() and path.is_dir() and _begun(path):
        raise RunError(
            f"{path} is not empty and holds no config.json, but {_contents(path)}: choose an empty or new run directory"
        )
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with storage_errors(path / "lock"):
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if not wait:
            os.close(lock)
            raise RunError(
                f"another process is working in {path}: wait for it or choose another run directory"
            ) from error
        notice(f"another process is working in {path}: waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
        resumed = config_file.exists() and _begun(path)
    try:
        if wait and resumed:  # What the other process has written by now may be of another configuration.
            _check_same(path, read_object(config_file), stored_config)
        _describe(config_file, stored_config, resumed, here)
    except BaseException:
        os.close(lock)
        raise
    return RunDirectory(path=path, config=stored_config, resumed=resumed, lock=lock)


def _begun(path: Path) -> bool:
    """Whether anything was made here: a run that failed on its first input may be started with other options."""
    ours = ("lock", "config.json", "config.json.partial", "processes")
    return any(entry.name not in ours for entry in path.iterdir())


def _check_same(path: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    old = stored.get("config")
    if not isinstance(old, dict):
        raise RunError(f"{path / 'config.json'}: 'config' is {_short(old)}, an object is needed: restore the file")
    changes = list(_differences(old, config, ""))
    if changes:
        shown = "; ".join(changes[:_SHOWN]) + (f"; {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")
        made = f" (made by {_maker(path)})" if len(changes) > _SHOWN else ""
        raise RunError(
            f"{path} belongs to a run of another configuration{made}: {shown}. {_way_on(stored, changes)}, or choose another run "
            "directory; nothing was overwritten"
        )


def _way_on(stored: Mapping[str, Any], changes: Sequence[str]) -> str:
    """How such a run can be continued. Options that one side does not have are another version's: no value repeats them."""
    if not all("'absent'" in change for change in changes):
        return "Repeat the old options to continue it"
    here = stored.get("environment")
    commit = here.get("commit") if isinstance(here, dict) else None
    known = f" (commit {commit[:12]})" if isinstance(commit, str) else ""
    return f"Another version of the code began it{known}: continue it with that"


def _differences(old: Any, new: Any, name: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            inner = f"{name}.{key}" if name else key
            yield from _differences(old.get(key, "absent"), new.get(key, "absent"), inner)
    elif old != new:
        yield f"{name} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"


def _describe(config_file: Path, config: Mapping[str, Any], resumed: bool, here: Mapping[str, Any]) -> None:
    """Writes `config.json`, or notes in it that the run goes on in another environment."""
    if not resumed:
        write_json(
            config_file, {"config": config, "command": ["python", *sys.argv], "started": _now(), "environment": here}
        )
        return
    stored = read_object(config_file)
    earlier = stored.get("continued", [])
    last = earlier[-1] if isinstance(earlier, list) and earlier and isinstance(earlier[-1], dict) else stored
    changes = "; ".join(_differences(last.get("environment"), here, ""))
    if changes:
        notice(f"the run goes on in another environment, bitwise equality is not promised: {changes}")
        continued = [*(earlier if isinstance(earlier, list) else []), {"at": _now(), "environment": here}]
        write_json(config_file, {**stored, "continued": continued})


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def enable_compilation_cache(path: Path | str | None = None, *, beside: Path | None = None) -> Path | None:
    """Keeps compiled programs on disk, so that the next start compiles less; call before the first compilation.

    Args:
      path: folder of the cache; None takes the one JAX is already configured with (`JAX_COMPILATION_CACHE_DIR`).
      beside: a run directory: without either of these the cache is `jax_cache` next to it, shared by all runs there;
        without a run directory it is `rlhf_jax/jax_cache` in the user's cache folder.
    Returns: the folder, or None where it cannot be written (the run then only compiles again).
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf_jax" / "jax_cache"
    if beside is not None:
        default = beside.absolute().parent / "jax_cache"
    configured = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue] - made at run time
    folder = Path(path or configured or default)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        notice(f"no compilation cache: {error}")
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder
