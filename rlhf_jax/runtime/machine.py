"""What a run's numbers depend on besides its configuration and its data."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

import rlhf_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy", "tokenizers", "scikit-learn")


def environment() -> dict[str, Any]:
    """Commit, versions and devices: all that changes numbers besides configuration and data."""
    devices = jax.devices()
    return {
        "rlhf_jax": rlhf_jax.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "devices": {"kind": devices[0].device_kind, "count": len(devices), "processes": jax.process_count()},
    }


def _cpu(file: Path = Path("/proc/cpuinfo")) -> str:
    """Name, family and model of the processor: XLA compiles for it, and another one rounds in another order."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:  # Not Linux.
        return platform.processor()
    known = {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}
    named = ("model name", "cpu family", "model")
    return ", ".join(
        f"{name} {known[name]}" if name != "model name" else known[name] for name in named if name in known
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout the package is imported from, `-dirty` when tracked files differ; None outside git."""
    folder = Path(rlhf_jax.__file__).parent
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            check=False,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
