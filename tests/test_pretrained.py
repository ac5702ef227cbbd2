"""Files of pretrained models are found in a folder or the hub's cache, and named where they are not."""

from pathlib import Path

import pytest

from rlhf_jax import pretrained


def test_a_folder_comes_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert pretrained.local_file(tmp_path, "config.json") == tmp_path / "config.json"
    with pytest.raises(ValueError, match=r"merges\.txt: missing"):
        pretrained.local_file(tmp_path, "merges.txt")


def test_a_hub_name_is_looked_up_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "models--some--gpt2"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "snapshots" / "abc" / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert pretrained.local_file("some/gpt2", "config.json").read_text() == "{}"
    with pytest.raises(ValueError, match="local hub cache has no merges.txt of 'some/gpt2'"):
        pretrained.local_file("some/gpt2", "merges.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "utf-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"n_head": 2, "n_head": 3}', "the field 'n_head' is there twice"),
        (b"1" * 5000, "digits"),
        (b"[1]", "must be a JSON object of fields"),
    ],
)
def test_a_file_that_holds_no_fields_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        pretrained.json_object(path)
    assert str(caught.value).startswith(str(path))
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert pretrained.json_object(path) == {"a": 1}


@pytest.mark.parametrize("source", ["/no/such/folder", "../no/such/folder"])
def test_a_folder_that_is_not_there_is_named(source: str) -> None:
    with pytest.raises(ValueError, match=f"there is no folder {source}"):
        pretrained.local_file(source, "config.json")
