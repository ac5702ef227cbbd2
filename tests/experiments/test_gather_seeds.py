"""What `gather_seeds.py` does where the dialogues of a run are gone; the rest is tested end to end."""

import json
from pathlib import Path

import gather_seeds
import pytest


def test_without_the_dialogues_the_split_by_naming_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"dir": str(tmp_path / "gone"), "domain": "both", "on_bad_line": "error", "max_dialogues": None}
    (tmp_path / "config.json").write_text(json.dumps({"config": {"data": data, "assess": {"test_dialogues": None}}}))
    assert gather_seeds.by_naming("both", tmp_path, {}) == []
    said = capsys.readouterr().err
    assert "both is not split by what the context names: " in said and str(tmp_path / "gone") in said
