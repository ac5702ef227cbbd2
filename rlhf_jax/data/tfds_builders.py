"""tensorflow-datasets builders for ReDial and the simulated world; needs and uses no TensorFlow.

Each builder has two configurations, `dialogues` (splits train, validation, test) and `items` (split catalogue), both
written as array_record in the reader's order. `build` writes them and `read_corpus` gives back the same `Corpus` that
`read_redial` gives.
"""

import abc
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from rlhf_jax.data.redial import read_redial
from rlhf_jax.interfaces import Corpus, Dialogue, Item, ItemLabel, Message

_COMMIT = "https://raw.githubusercontent.com/ReDialData/website/849e9eb1bb60e312f8bf4daa82fc10a285e9318b"
URLS: Mapping[str, tuple[str, str]] = {
    # The checksum of the archive is the one ParlAI checks its download against.
    "dialogues": (
        "https://github.com/ReDialData/website/raw/data/redial_dataset.zip",
        "b48756681ec6f84e0af36979c5e9baa21ea8d9e7036b8764ea9b787bb0baf69b",
    ),
    "names": (
        f"{_COMMIT}/movies_with_mentions.csv",
        "0d408daa474ac95b959a739a261dddd997dd800f5ea585da15a434a26187dbb0",
    ),
}
"""Official files: address and sha256."""
_ROLES = ("seeker", "recommender")
_SPLITS = ("train", "validation", "test")
_UNKNOWN = -1


class _CorpusBuilder(tfds.core.GeneratorBasedBuilder):
    """What the builders share: features, splits and records; where the files come from is the subclass's."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar = {"1.1.0": "Punctuation is plain: curly quotes, dashes and ellipses are written in ASCII."}
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="dialogues", description="One record per dialogue."),
        tfds.core.BuilderConfig(name="items", description="One record per item mentioned in any split."),
    ]
    HOMEPAGE = ""
    LICENSE = ""

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any) -> None:
        super().__init__(file_format=file_format, **kwargs)

    @abc.abstractmethod
    def _corpus(self, dl_manager: tfds.download.DownloadManager) -> Corpus:
        """Reads the files, wherever they come from."""

    @property
    def _of_items(self) -> bool:
        return self.builder_config is not None and self.builder_config.name == "items"

    def _info(self) -> tfds.core.DatasetInfo:
        ints = tfds.features.Tensor(shape=(None,), dtype=np.int64)
        texts = tfds.features.Sequence(tfds.features.Text())
        number = tfds.features.Scalar(dtype=np.int64)
        if not self._of_items:
            features = {
                "dialogue_id": tfds.features.Text(),
                "provenance": tfds.features.Text(),
                "message_role": ints,
                "message_id": ints,
                "message_time_offset": ints,
                "part_message": ints,
                "part_item": ints,
                "part_words": texts,
                "labels": tfds.features.Tensor(shape=(None, 5), dtype=np.int64),
            }
        else:
            features = {
                "item_id": number,
                "title": tfds.features.Text(),
                "year": number,
                "genres": texts,
                "people": texts,
                "plot": tfds.features.Text(),
            }
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            metadata=tfds.core.MetadataDict(),
            # Records stay in the reader's order, so that an index names the same dialogue everywhere.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        corpus = self._corpus(dl_manager)
        metadata: Any = self.info.metadata
        metadata["provenance"] = dict(corpus.provenance)
        if self._of_items:
            return {"catalogue": self._generate_examples(corpus.items.values())}
        return {split: self._generate_examples(getattr(corpus, split)) for split in _SPLITS}

    def _generate_examples(self, entries: Iterable[Item | Dialogue]) -> Iterator[tuple[int, dict[str, Any]]]:
        for place, entry in enumerate(entries):
            yield place, _item_record(entry) if isinstance(entry, Item) else _dialogue_record(entry)


class Redial(_CorpusBuilder):
    """Recommendation dialogues about movies (Li et al. 2018, arXiv:1812.07617), the official release."""

    HOMEPAGE = "https://redialdata.github.io/website/"
    LICENSE = "CC BY 4.0"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Offline, put train_data.jsonl[.gz], test_data.jsonl[.gz] and movies_with_mentions.csv (and, if at hand, "
        "train_provenance.tsv and kg/id2info.json) into the manual folder; nothing is downloaded then."
    )

    def _corpus(self, dl_manager: tfds.download.DownloadManager) -> Corpus:
        try:
            manual = dl_manager.manual_dir
        except AssertionError:  # TFDS's way to say that the folder is absent or empty
            return self._downloaded(dl_manager)
        return read_redial(os.fspath(manual))

    def _downloaded(self, dl_manager: tfds.download.DownloadManager) -> Corpus:
        paths = {}
        for name, (url, sha256) in URLS.items():
            paths[name] = Path(os.fspath(dl_manager.download(url)))
            check_sha256(paths[name], url, sha256)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "movies_with_mentions.csv").symlink_to(paths["names"])
            with zipfile.ZipFile(paths["dialogues"]) as archive:
                for member in archive.namelist():
                    if Path(member).name in ("train_data.jsonl", "test_data.jsonl"):
                        (Path(folder) / Path(member).name).write_bytes(archive.read(member))
            return read_redial(folder)


class World(_CorpusBuilder):
    """Dialogues of a simulated world in the ReDial format.

    The generator is passed in as `write`, a function that writes its files into a folder; data never imports
    simulators. Reading data that is built already needs no `write`.
    """

    LICENSE = "Apache-2.0"

    def __init__(self, *, write: Callable[[Path], object] | None = None, **kwargs: Any) -> None:
        self._write = write
        super().__init__(**kwargs)

    def _corpus(self, dl_manager: tfds.download.DownloadManager) -> Corpus:
        if self._write is None:
            raise ValueError("World(write=None) can read built data only; pass the function that writes the files")
        with tempfile.TemporaryDirectory() as folder:
            self._write(Path(folder))
            return read_redial(folder)


def check_sha256(path: Path, url: str, expected: str) -> None:
    """Raises `ValueError` naming address and both sums if a downloaded file is not the expected one."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{url}: sha256 is {found}, expected {expected}")


def build(
    builder: type[_CorpusBuilder], data_dir: str | Path, manual_dir: str | Path | None = None, **kwargs: Any
) -> None:
    """Writes both configurations of a builder below `data_dir`, unless they are there already.

    Args:
      builder: `Redial` or `World`.
      data_dir: where TFDS keeps built data sets.
      manual_dir: folder with files got by hand; None lets TFDS look below `data_dir`, then download.
      kwargs: of the builder (`write` for `World`).
    """
    config = tfds.download.DownloadConfig(manual_dir=None if manual_dir is None else str(manual_dir))
    for name in ("dialogues", "items"):
        builder(config=name, data_dir=str(data_dir), **kwargs).download_and_prepare(download_config=config)


def read_corpus(name: str, data_dir: str | Path) -> Corpus:
    """A built data set (`redial` or `world`) as the corpus the direct reader gives."""
    metadata = tfds.builder(f"{name}/dialogues", data_dir=str(data_dir)).info.metadata
    if metadata is None or "provenance" not in metadata:
        raise ValueError(f"{data_dir}: the built data set {name!r} has no metadata; build it again")
    catalogue = [_item(record) for record in _records(f"{name}/items", "catalogue", data_dir)]
    splits = {split: tuple(map(_dialogue, _records(f"{name}/dialogues", split, data_dir))) for split in _SPLITS}
    return Corpus(
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        items={item.item_id: item for item in catalogue},
        provenance=metadata["provenance"],
    )


def _records(name: str, split: str, data_dir: str | Path) -> Sequence[Mapping[str, Any]]:
    source: Any = tfds.data_source(name, split=split, data_dir=str(data_dir), download=False)
    return source


def _dialogue_record(dialogue: Dialogue) -> dict[str, Any]:
    messages = dialogue.messages
    parts = [(place, part) for place, message in enumerate(messages) for part in message.parts]
    labels = [
        [form, item_id, *label]
        for form, table in enumerate((dialogue.seeker_labels, dialogue.recommender_labels))
        for item_id, label in table.items()
    ]
    times = [_UNKNOWN if message.time_offset is None else message.time_offset for message in messages]
    return {
        "dialogue_id": dialogue.dialogue_id,
        "provenance": dialogue.provenance,
        "message_role": np.array([_ROLES.index(message.role) for message in messages], np.int64),
        "message_id": np.array([message.message_id for message in messages], np.int64),
        "message_time_offset": np.array(times, np.int64),
        "part_message": np.array([place for place, _ in parts], np.int64),
        "part_item": np.array([part if isinstance(part, int) else _UNKNOWN for _, part in parts], np.int64),
        "part_words": [part if isinstance(part, str) else "" for _, part in parts],
        "labels": np.array(labels, np.int64).reshape(-1, 5),
    }


def _dialogue(record: Mapping[str, Any]) -> Dialogue:
    parts: list[list[str | int]] = [[] for _ in record["message_role"]]
    for place, item_id, words in zip(
        record["part_message"].tolist(), record["part_item"].tolist(), record["part_words"], strict=True
    ):
        parts[place].append(words.decode() if item_id == _UNKNOWN else item_id)
    messages = tuple(
        Message(_ROLES[role], tuple(said), message_id, None if time_offset == _UNKNOWN else time_offset)
        for role, said, message_id, time_offset in zip(
            record["message_role"].tolist(),
            parts,
            record["message_id"].tolist(),
            record["message_time_offset"].tolist(),
            strict=True,
        )
    )
    forms: tuple[dict[int, ItemLabel], ...] = ({}, {})
    for form, item_id, suggested, seen, liked in record["labels"].tolist():
        forms[form][item_id] = ItemLabel(suggested, seen, liked)
    return Dialogue(record["dialogue_id"].decode(), messages, *forms, provenance=record["provenance"].decode())


def _item_record(item: Item) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "title": item.title,
        "year": _UNKNOWN if item.year is None else item.year,
        "genres": list(item.genres),
        "people": list(item.people),
        "plot": item.plot,
    }


def _item(record: Mapping[str, Any]) -> Item:
    year = int(record["year"])
    return Item(
        item_id=int(record["item_id"]),
        title=record["title"].decode(),
        year=None if year == _UNKNOWN else year,
        genres=tuple(name.decode() for name in record["genres"]),
        people=tuple(name.decode() for name in record["people"]),
        plot=record["plot"].decode(),
    )
