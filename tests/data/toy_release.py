"""A folder in the official ReDial format, small enough to change one thing at a time."""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

NAMES = {
    "10": "Scarface  (1983)",
    "20": "The Godfather ",
    "30": "Alien (1979)",
    "31": "Alien (1979)",
    "40": "What About Bob%3F (1991)",
    "60": "Never Mentioned (2000)",
}
INFO = {
    "10": {
        "name": "Scarface (1983)",
        "genre": ["crime", "drama"],
        "plot": "A refugee takes over a cartel.",
        "director": ["Brian De Palma"],
        "writer": ["Oliver Stone"],
        "star": ["Al Pacino", "Michelle Pfeiffer"],
        "imdb_id": "tt0086250",
    },
    "20": {"name": "The Godfather (1972)", "genre": ["crime", "drama"], "plot": "", "star": ["Al Pacino"]},
}
SEEKER, RECOMMENDER = 7, 8
LIKED = {"suggested": 0, "seen": 1, "liked": 1}


def message(sender: int, text: str, message_id: int = 0, **changes: Any) -> dict[str, Any]:
    """One message as the release writes it."""
    entry = {"timeOffset": 5 * message_id, "text": text, "senderWorkerId": sender, "messageId": message_id}
    return entry | changes


def dialogue(dialogue_id: int, texts: list[tuple[int, str]] | None = None, **changes: Any) -> dict[str, Any]:
    """One dialogue as the release writes it; `changes` replace fields."""
    if texts is None:
        texts = [
            (SEEKER, "Hi, I loved @10 !"),
            (RECOMMENDER, "Have you seen @20?"),
            (RECOMMENDER, "Or @30 and @10"),
            (SEEKER, "No, sounds good"),
            (SEEKER, "bye"),
        ]
    record = {
        "conversationId": str(dialogue_id),
        "initiatorWorkerId": SEEKER,
        "respondentWorkerId": RECOMMENDER,
        "messages": [message(sender, text, place) for place, (sender, text) in enumerate(texts)],
        "movieMentions": {"10": NAMES["10"], "20": NAMES["20"], "30": NAMES["30"]},
        "initiatorQuestions": {"10": LIKED, "20": {"suggested": 1, "seen": 0, "liked": 2}},
        "respondentQuestions": {"10": {"suggested": 0, "seen": 1, "liked": 0}},
    }
    return copy.deepcopy(record) | changes


def write_release(
    folder: Path,
    train: list[Any] | None = None,
    test: list[Any] | None = None,
    *,
    zipped: bool = False,
    provenance: dict[str, str] | None = None,
    metadata: bool = True,
) -> Path:
    """Writes the files; a `str` instead of a record goes in as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    train = [dialogue(number) for number in range(1, 11)] if train is None else train
    test = [dialogue(100), dialogue(101)] if test is None else test
    for split, records in (("train", train), ("test", test)):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        data = "".join(f"{line}\n" for line in lines).encode()
        if zipped:
            (folder / f"{split}_data.jsonl.gz").write_bytes(gzip.compress(data))
        else:
            (folder / f"{split}_data.jsonl").write_bytes(data)
    rows = "".join(f'{key},"{name}",1\r\n' for key, name in NAMES.items())
    (folder / "movies_with_mentions.csv").write_bytes(f"movieId,movieName,nbMentions\r\n{rows}".encode())
    if provenance is not None:
        rows = "".join(f"{key}\t{kind}\n" for key, kind in provenance.items())
        (folder / "train_provenance.tsv").write_text(f"conversationId\tprovenance\n{rows}")
    if metadata:
        (folder / "kg").mkdir(exist_ok=True)
        (folder / "kg" / "id2info.json").write_text(json.dumps(INFO))
    return folder
