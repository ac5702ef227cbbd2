"""Where files of pretrained models are: a folder, or the local cache of the Hugging Face hub. Nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError


def local_file(source: str | Path, name: str) -> Path:
    """The path of one file of a pretrained model.

    Args:
      source: a folder, or a hub name such as `gpt2-medium` whose files were fetched before
        (`hf download gpt2-medium config.json model.safetensors vocab.json merges.txt`).
      name: of the file.
    Raises: ValueError naming the file and the places that were looked at.
    """
    folder = Path(source)
    if (folder / name).is_file():
        return folder / name
    if folder.is_dir():
        raise ValueError(f"{folder / name}: missing")
    try:
        cached = try_to_load_from_cache(str(source), name)
    except HFValidationError:  # A path, and no such folder.
        raise ValueError(f"{folder / name}: missing, there is no folder {source}") from None
    if cached is None or not Path(str(cached)).is_file():  # A marker stands for a file known not to exist.
        raise ValueError(f"{folder / name}: missing, and the local hub cache has no {name} of {str(source)!r}")
    return Path(str(cached))


def json_value(path: Path) -> Any:
    """What a JSON file holds; ValueError names a file that is none, or has a field twice."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError(f"{path}: no readable JSON (nested too deep)") from None
    except (OSError, ValueError) as error:  # ValueError: also bytes that are no text, and endless numbers.
        raise ValueError(f"{path}: no readable JSON ({error})") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return fields


def json_object(path: Path) -> dict[str, Any]:
    """The fields of a file such as `config.json`; ValueError names a file that is none."""
    fields = json_value(path)
    if isinstance(fields, dict):
        return fields
    raise ValueError(f"{path}: must be a JSON object of fields, got {str(fields)[:60]!r}")
