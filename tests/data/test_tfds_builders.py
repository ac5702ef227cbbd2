"""The TFDS builders: what is read back is what the direct reader gives, and no TensorFlow is needed."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from toy_release import dialogue, message, write_release

from rlhf_jax.data import tfds_builders
from rlhf_jax.data.redial import read_redial
from rlhf_jax.data.tfds_builders import Redial, World, build, check_sha256, read_corpus


def with_quirks(folder: Path) -> Path:
    """A toy release with what is hard to store: nothing at all, missing times, entities, empty forms."""
    silent = [message(7, ""), message(8, "R&amp;B \N{GRINNING FACE} @10@20", timeOffset=-1)]
    train = [
        dialogue(1, messages=silent, initiatorQuestions=[], respondentQuestions=[], movieMentions={"50": None}),
        *(dialogue(number) for number in range(2, 12)),
    ]
    return write_release(folder, train=train, provenance={"1": "rebuilt"})


def test_redial_from_a_manual_folder(tmp_path: Path) -> None:
    folder = with_quirks(tmp_path / "manual")
    build(Redial, tmp_path / "built", folder)
    assert read_corpus("redial", tmp_path / "built") == read_redial(folder)
    source = tfds.data_source("redial/dialogues", split="train", data_dir=str(tmp_path / "built"))
    assert len(source) == 10 and source[3]["dialogue_id"] == b"4"
    assert list((tmp_path / "built").rglob("*.array_record*"))


def test_world_from_its_generator(tmp_path: Path) -> None:
    build(World, tmp_path / "built", write=write_release)
    assert read_corpus("world", tmp_path / "built").test == read_redial(write_release(tmp_path / "direct")).test
    with pytest.raises(ValueError, match="pass the function that writes the files"):
        build(World, tmp_path / "elsewhere")


class Downloads:
    """Stands for TFDS's download manager on a machine without a manual folder."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    @property
    def manual_dir(self) -> Path:
        raise AssertionError("Manual directory not enabled.")

    def download(self, url: str) -> Path:
        return self._files[url]


@pytest.mark.usefixtures("unchecked")
def test_redial_from_the_official_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_release(tmp_path / "files", metadata=False)
    archive = tmp_path / "redial_dataset.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("train_data.jsonl", "test_data.jsonl"):
            file.write(folder / name, f"redial/{name}")
    files = {"https://zip": archive, "https://csv": folder / "movies_with_mentions.csv"}
    sums = [tfds_builders.hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()]
    urls = dict(zip(("dialogues", "names"), zip(files, sums, strict=True), strict=True))
    monkeypatch.setattr(tfds_builders, "URLS", urls)
    builder = Redial(config="dialogues", data_dir=str(tmp_path / "built"))
    assert builder._corpus(Downloads(files)) == read_redial(folder)
    urls["names"] = ("https://csv", "0" * 64)
    with pytest.raises(ValueError, match=r"https://csv: sha256 is [0-9a-f]{64}, expected 0{64}"):
        builder._corpus(Downloads(files))


def test_the_official_table_of_items_has_the_stored_checksum(data_dir: Path) -> None:
    url, expected = tfds_builders.URLS["names"]
    check_sha256(data_dir / "redial" / "movies_with_mentions.csv", url, expected)


def test_reading_needs_no_tensorflow(tmp_path: Path) -> None:
    build(World, tmp_path, write=write_release)
    script = (
        "import sys\n"
        "from rlhf_jax.data.tfds_builders import read_corpus\n"
        f"print(len(read_corpus('world', {str(tmp_path)!r}).train), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["9", "False"]
