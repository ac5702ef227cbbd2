"""What do readers make of damaged lines? Ten thousand mutated lines for each reader of data, on small valid files.

    python tools/mutate_lines.py                       # all readers; writes its table into docs/wrong_input.md
    python tools/mutate_lines.py uss --lines 500       # some readers, fewer lines; writes nothing

One line of the file is changed (bits, pieces, fields, numbers, JSON types, characters that are none, line ends) and the whole
file is read. Every outcome is one of

    same        the value of the undamaged file
    parsed      another value, which holds nothing but what can be stored: text in UTF-8, finite numbers of 64 bits
    refused     the package's own error, and it names the file, and the line where the format has lines
    unclear     that error without file or line
    unstorable  another value that cannot be stored
    traceback   any other exception
    slow        more than a second of this process

Seeded: the same lines every time. Fails unless the last four are 0.
"""

import argparse
import csv
import dataclasses
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from page_parts import replace_part
from rlhf_jax.data.amazon_games import read_amazon_games
from rlhf_jax.data.human_ratings import read_response_ratings, read_uss
from rlhf_jax.data.lines import INT64
from rlhf_jax.data.movielens import read_movielens
from rlhf_jax.data.opendialkg import read_opendialkg
from rlhf_jax.data.ratings import RatingCorpus
from rlhf_jax.data.redial import read_redial
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.evaluation.results import Result
from rlhf_jax.reporting.run_report import read_results, write_results
from rlhf_jax.runtime.metrics import read_metrics
from rlhf_jax.simulators.world import WorldConfig
from rlhf_jax.simulators.world_dialogues import write_world

PAGE = REPOSITORY / "docs" / "wrong_input.md"
OUTCOMES = ("same", "parsed", "refused", "unclear", "unstorable", "traceback", "slow")
WRONG = OUTCOMES[3:]
SLOW = 1.0
"""Seconds of this process."""
HUGE = (b"9" * 400, b"1e999", b"-1", b"99999999999999999999", b"9223372036854775808", b"0.1", b"1e-400", b"00", b"NaN")
OTHER = (b"null", b"true", b"[]", b"{}", b'"1"', b"0", b'[{"a": 1}]', b'""')
ALIEN = (b"\x00", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xff", b"\\ud800", b"\\u0000", b"\xe2\x80\xa8", b"\xc2\x85", b"\r", b"\t",
         b'"', b"\n", b"\r\n", b"\xf0\x9f\x98\x80", b",", b"\x1b[31m")  # fmt: skip


class Case(NamedTuple):
    """A valid small file, and what reads it."""

    file: str
    """The file that is damaged, inside the folder."""
    read: Callable[[Path], Any]
    """The reader, given the folder."""
    has_lines: bool = True
    """Whether an error can name a line; a file that is one JSON object has none."""


CASES: Mapping[str, Case] = {
    "redial": Case("redial/train_data.jsonl", lambda folder: read_redial(folder / "redial")),
    "redial_names": Case("redial/movies_with_mentions.csv", lambda folder: read_redial(folder / "redial")),
    "redial_provenance": Case("redial/train_provenance.tsv", lambda folder: read_redial(folder / "redial")),
    "redial_info": Case("redial/kg/id2info.json", lambda folder: read_redial(folder / "redial"), has_lines=False),
    "opendialkg": Case("processed/dialogues.jsonl", lambda folder: read_opendialkg(folder / "processed")),
    "opendialkg_info": Case(
        "processed/id2info.json", lambda folder: read_opendialkg(folder / "processed"), has_lines=False
    ),
    "opendialkg_csv": Case("official/opendialkg.csv", lambda folder: read_opendialkg(folder / "official")),
    "opendialkg_entities": Case(
        "official/opendialkg_entities.txt", lambda folder: read_opendialkg(folder / "official")
    ),
    "opendialkg_triples": Case("official/opendialkg_triples.txt", lambda folder: read_opendialkg(folder / "official")),
    "uss": Case("uss/ReDial.txt", lambda folder: read_uss(folder / "uss")),
    "uss_ids": Case("uss/ReDial_conversation_ids.tsv", lambda folder: read_uss(folder / "uss")),
    "ratings": Case("ratings.jsonl", lambda folder: read_response_ratings(folder / "ratings.jsonl")),
    "movielens_100k": Case("ml-100k/u.data", lambda folder: read_movielens(folder / "ml-100k")),
    "movielens_100k_items": Case("ml-100k/u.item", lambda folder: read_movielens(folder / "ml-100k")),
    "movielens_100k_genres": Case("ml-100k/u.genre", lambda folder: read_movielens(folder / "ml-100k")),
    "movielens_1m": Case("ml-1m/ratings.dat", lambda folder: read_movielens(folder / "ml-1m")),
    "movielens_1m_items": Case("ml-1m/movies.dat", lambda folder: read_movielens(folder / "ml-1m")),
    "amazon_games": Case("games/Games-6k.test.inter", lambda folder: read_amazon_games(folder / "games")),
    "amazon_games_items": Case("games/Games-6k.item", lambda folder: read_amazon_games(folder / "games")),
    "vocabulary": Case(
        "vocabulary/vocabulary.json", lambda folder: Vocabulary.load(folder / "vocabulary"), has_lines=False
    ),
    "tokenizer": Case(
        "vocabulary/tokenizer.json", lambda folder: Vocabulary.load(folder / "vocabulary"), has_lines=False
    ),
    "gpt2_vocab": Case("gpt2/vocab.json", lambda folder: merged(folder / "gpt2"), has_lines=False),
    "gpt2_merges": Case("gpt2/merges.txt", lambda folder: merged(folder / "gpt2"), has_lines=False),
    "gpt2_single": Case("single/tokenizer.json", lambda folder: merged(folder / "single"), has_lines=False),
    "metrics": Case("run/metrics.jsonl", lambda folder: read_metrics(folder / "run" / "metrics.jsonl")),
    "results": Case("run/results.json", lambda folder: read_results(folder / "run"), has_lines=False),
}


def merged(folder: Path) -> str:
    """GPT-2's tokenizer of a folder as one text."""
    return Vocabulary.from_gpt2(folder, [1, 2]).tokenizer_json


def write_valid(folder: Path) -> None:
    """All valid files."""
    write_world(folder / "redial", WorldConfig(n_items=16, n_train=6, n_test=2, n_users=4), 0)
    conversations = [json.loads(line)["conversationId"] for line in lines_of(folder / "redial" / "train_data.jsonl")]
    texts = {
        "redial/train_provenance.tsv": "conversationId\tprovenance\n" + "".join(f"{c}\tworld\n" for c in conversations)
    }
    said = [
        {"role": "user", "text": "I liked Zodiac &amp; more", "item": ["Zodiac"]},
        {"role": "assistant", "text": "then turbo!", "item": ["Turbo"]},
    ]
    texts["processed/dialogues.jsonl"] = jsonl(
        {"dialog_id": n, "domain": ("movie", "book")[n % 2], "messages": said} for n in range(12)
    )
    info = {
        "0": {"name": "Turbo", "year": "2013", "actor": ["A B"], "genre": ["Comedy"]},
        "1": {"name": "Zodiac", "year": "1986"},
    }
    texts["processed/id2info.json"] = json.dumps(info, indent=1)
    actions = [
        {"type": "chat", "sender": "user", "message": 'Do you like "Iron Man"?'},
        {
            "type": "action",
            "sender": "assistant",
            "metadata": {"path": [0.5, [["Iron Man", "starred_actors", "Robert Downey Jr."]], "words"]},
        },
        {"type": "chat", "sender": "assistant", "message": "Iron Man, yes"},
    ]
    (folder / "official").mkdir()
    with (folder / "official" / "opendialkg.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["Messages", "User Rating"], *([json.dumps(actions), "5"] for _ in range(12))])
    texts["official/opendialkg_entities.txt"] = "Iron Man\nRobert Downey Jr.\nZodiac (film)\n"
    texts["official/opendialkg_triples.txt"] = (
        "Iron Man\tstarred_actors\tRobert Downey Jr.\nIron Man\trelease_year\t2008\n"
    )
    texts["uss/ReDial.txt"] = (
        "USER\tHello!\t\t4,3,5\nSYSTEM\thello, it\t\t\nUSER\tOVERALL\t\t3,3\n\nUSER\tHi\t\t1\nSYSTEM\tyes\t\t\n"
    )
    texts["uss/ReDial_conversation_ids.tsv"] = "dialogue\tconversationId\tlong_utterances\n0\t13120\t25\n1\t2162\t9\n"
    responses = {name: {"text": 'have you seen "It (2017)"?', "rating": 3} for name in ("kbrd", "retrieval")}
    rated = {"study": "a", "rater": 1, "rater_passed_check": True, "dialog_id": 5, "responses": responses}
    texts["ratings.jsonl"] = jsonl({**rated, "context": [{"role": "user", "text": "Hi"}]} for _ in range(3))
    texts["run/metrics.jsonl"] = jsonl(
        {"stage": "ppo", "step": n, "loss": 0.5 / n, "ppo/skipped": None} for n in (1, 2, 3)
    )
    texts |= rating_files()
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    write_results(
        folder / "run",
        [
            Result(f"{name}/hr@5", 0.25, 12, "full", "redial/test", (0.125, 0.5), (0, 1), "hits", 0.01)
            for name in ("sft", "ppo")
        ],
    )
    vocabulary = Vocabulary.train(["the cat sat on the mat the hat"] * 9, range(1, 9), 270, lower_case=False)
    vocabulary.save(folder / "vocabulary")
    for name in ("gpt2", "single"):
        (folder / name).mkdir()
    vocabulary.tokenizer.model.save(str(folder / "gpt2"))
    fields = json.loads(vocabulary.tokenizer_json)
    (folder / "single" / "tokenizer.json").write_text(json.dumps(fields, indent=1), encoding="utf-8")


def rating_files() -> dict[str, str]:
    """MovieLens in both layouts and Amazon's games: three users, three items, in characters that all encodings share."""
    titles = {1: "Toy Story (1995)", 2: "Usual Suspects, The (1995)", 3: "Postino, Il (1994)"}
    rated = [(user, item, 1 + (user + item) % 5, 874_965_000 + user * item) for user in (1, 2, 3) for item in titles]
    flags = "|".join("1" if place in (1, 5) else "0" for place in range(19))
    bought = [(user, (1, 2, 3)[user - 1 :] + (1, 2, 3)[: user - 1]) for user in (1, 2, 3)]
    return {
        "ml-100k/u.data": "".join("\t".join(map(str, row)) + "\n" for row in rated),
        "ml-100k/u.item": "".join(
            f"{item}|{title}|01-Jan-1995||http://us.imdb.com/|{flags}\n" for item, title in titles.items()
        ),
        "ml-100k/u.genre": "".join(f"genre{place}|{place}\n" for place in range(19)) + "\n",
        "ml-1m/ratings.dat": "".join("::".join(map(str, row)) + "\n" for row in rated),
        "ml-1m/movies.dat": "".join(f"{item}::{title}::Comedy|Drama\n" for item, title in titles.items()),
        "games/Games-6k.item": "item_id:token\ttitle:token_seq\n"
        + "".join(f"{item}\t{title}\n" for item, title in titles.items()),
        "games/Games-6k.test.inter": "user_id:token\titem_id_list:token_seq\titem_id:token\n"
        + "".join(f"{user}\t{' '.join(map(str, items[:-1]))}\t{items[-1]}\n" for user, items in bought),
    }


def jsonl(records: Any) -> str:
    """One object a line."""
    return "".join(f"{json.dumps(record)}\n" for record in records)


def lines_of(path: Path) -> list[bytes]:
    """Lines with their ends."""
    return path.read_bytes().splitlines(keepends=True)


def flip(line: bytes, draw: random.Random) -> bytes:
    """One bit."""
    place = draw.randrange(len(line))
    return line[:place] + bytes([line[place] ^ 1 << draw.randrange(8)]) + line[place + 1 :]


def delete(line: bytes, draw: random.Random) -> bytes:
    """A piece is missing; a short one, or all from some place on."""
    place = draw.randrange(len(line))
    return line[:place] + line[place + draw.choice((1, 2, 5, len(line))) :]


def double(line: bytes, draw: random.Random) -> bytes:
    """A piece is there twice: often a field, or the whole line."""
    begin, end = sorted(draw.sample(range(len(line) + 1), 2))
    if draw.random() < 0.5 and len(parts := split(line)) > 1:
        place = draw.randrange(len(parts))
        return b"".join([*parts[:place], parts[place], *parts[place:]])
    return line[:end] + line[begin:end] + line[end:] if draw.random() < 0.8 else line + line


def enlarge(line: bytes, draw: random.Random) -> bytes:
    """A number becomes one that no field can hold."""
    return instead_of_number(line, draw.choice(HUGE), draw)


def retype(line: bytes, draw: random.Random) -> bytes:
    """A JSON value, or a number, becomes one of another type."""
    parts = split(line)
    values = [
        place
        for place, part in enumerate(parts)
        if part.strip() and part.strip() not in (b",", b":", b"{", b"}", b"[", b"]")
    ]
    if not values or draw.random() < 0.2:
        return instead_of_number(line, draw.choice(OTHER), draw)
    place = draw.choice(values)
    return b"".join([*parts[:place], draw.choice(OTHER), *parts[place + 1 :]])


def nest(line: bytes, draw: random.Random) -> bytes:
    """A value, or the whole line, becomes one inside thousands of lists."""
    depth = draw.choice((1, 50, 5_000, 100_000))
    deep = b"[" * depth + b"]" * draw.choice((depth, depth, 0))
    return instead_of_number(line, deep, draw) if draw.random() < 0.7 else deep + b"\n"


def intrude(line: bytes, draw: random.Random) -> bytes:
    """A character that is none, or stands where it may not: half a surrogate pair, NUL, a byte-order mark, a line end."""
    place = draw.randrange(len(line) + 1)
    return line[:place] + draw.choice(ALIEN) + line[place:]


def swap(line: bytes, draw: random.Random) -> bytes:
    """Two fields change places."""
    parts = split(line)
    if len(parts) < 2:
        return line[::-1]
    one, other = draw.sample(range(len(parts)), 2)
    parts[one], parts[other] = parts[other], parts[one]
    return b"".join(parts)


def crlf(line: bytes, draw: random.Random) -> bytes:
    """Another line end, or none, or blanks before it."""
    return line.rstrip(b"\r\n") + draw.choice((b"\r\n", b"", b" \n", b"\r", b"\n\n", b"\r\r\n", b"\x0b\n", b"\t\n"))


def split(line: bytes) -> list[bytes]:
    """The line at its separators, which stand as parts of their own."""
    parts, start, quoted = [], 0, False
    for place, byte in enumerate(line):
        quoted ^= byte == ord('"')
        if not quoted and byte in b",:{}[]\t":
            parts += [line[start:place], line[place : place + 1]]
            start = place + 1
    return [part for part in [*parts, line[start:]] if part]


def instead_of_number(line: bytes, new: bytes, draw: random.Random) -> bytes:
    """`new` in the place of a run of digits; of any piece where there is none."""
    digits = [place for place, byte in enumerate(line) if 48 <= byte < 58]
    begin = end = draw.choice(digits) if digits else draw.randrange(len(line))
    while end < len(line) and 48 <= line[end] < 58:
        end += 1
    return line[:begin] + new + line[max(end, begin + 1) :]


MUTATIONS = (flip, delete, double, enlarge, retype, nest, intrude, swap, crlf)


def mutants(lines: Sequence[bytes], n: int, seed: str) -> Iterator[bytes]:
    """The file with one line damaged, `n` times."""
    draw = random.Random(seed)
    for number in range(n):
        place = draw.randrange(len(lines))
        line = lines[place] or b"\n"
        for _ in range(draw.choice((1, 1, 1, 2))):
            line = MUTATIONS[(number + draw.randrange(2)) % len(MUTATIONS)](line or b"\n", draw)
        yield b"".join([*lines[:place], line, *lines[place + 1 :]])


def storable(value: Any) -> bool:
    """Whether a value holds nothing but finite numbers of 64 bits, NaN (stored as null) and text in UTF-8."""
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return -INT64 <= value < INT64
    if isinstance(value, float):
        return not math.isinf(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return all(storable(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return all(storable(part) for pair in value.items() for part in pair)
    if isinstance(value, Sequence):
        return all(map(storable, value))
    return True


def known(value: Any) -> Any:
    """A corpus without the checksums of its files, which every damage changes; arrays as lists, which can be compared."""
    if isinstance(value, RatingCorpus):
        histories = tuple((tuple(own.items.tolist()), tuple(own.ratings.tolist())) for own in value.histories)
        return (value.name, value.items, value.users, histories)
    return dataclasses.replace(value, provenance={}) if hasattr(value, "provenance") else value


def outcome_of(case: Case, folder: Path, undamaged: Any) -> tuple[str, str]:
    """What became of a damaged file: (outcome, what was said)."""
    start = time.process_time()
    try:
        value = known(case.read(folder))
        found = ("same" if value == undamaged else "parsed" if storable(value) else "unstorable"), ""
    except ValueError as error:
        text = str(error)
        # A table of ids may be what names the line of another file that no longer has it.
        placed = str(folder) in text and (not case.has_lines or "line " in text or Path(case.file).name in text)
        found = ("refused" if placed else "unclear"), text
    except Exception as error:  # noqa: BLE001 - whatever it is, a user would see a traceback
        found = "traceback", f"{type(error).__name__}: {error}"
    seconds = time.process_time() - start
    return ("slow", f"{seconds:.1f} s") if seconds > SLOW else found


def count(name: str, n: int, seed: int, folder: Path, *, shown: int = 12) -> Counter[str]:
    """Outcomes of `n` damaged files of one reader; prints the first wrong ones."""
    case = CASES[name]
    file = folder / case.file
    whole, lines = file.read_bytes(), lines_of(file)
    undamaged = known(case.read(folder))
    counted: Counter[str] = Counter()
    for mutant in mutants(lines, n, f"{seed} {name}"):
        file.write_bytes(mutant)
        outcome, text = outcome_of(case, folder, undamaged)
        counted[outcome] += 1
        if outcome in WRONG and sum(counted[one] for one in WRONG) <= shown:
            damaged = next(
                (new for new, old in zip(mutant.split(b"\n"), whole.split(b"\n"), strict=False) if new != old), b""
            )
            print(f"{name}: {outcome}: {text[:300]!r}\n    {damaged[:200]!r}", flush=True)
    file.write_bytes(whole)
    return counted


def table(counted: Mapping[str, Counter[str]]) -> str:
    """Markdown: readers down, outcomes across."""
    rows = [("file", *OUTCOMES), ("---",) * (len(OUTCOMES) + 1)]
    rows += [(f"`{CASES[name].file}`", *(f"{found[one]:,}" for one in OUTCOMES)) for name, found in counted.items()]
    rows.append(("all", *(f"{sum(found[one] for found in counted.values()):,}" for one in OUTCOMES)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    """Damages, reads, counts, writes the table. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "readers", nargs="*", help=f"some readers alone, of {', '.join(CASES)}; then no table is written"
    )
    parser.add_argument("--lines", type=int, default=10_000, help="damaged lines a reader")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if unknown := [name for name in given.readers if name not in CASES]:
        parser.error(f"no reader is called {unknown[0]!r}: there are {', '.join(CASES)}")
    counted = {}
    with tempfile.TemporaryDirectory() as folder:
        write_valid(Path(folder))
        for name in given.readers or CASES:
            counted[name] = count(name, given.lines, given.seed, Path(folder))
            print(name, dict(counted[name]), flush=True)
    text = table(counted)
    print(text)
    if not given.readers and given.lines == parser.get_default("lines"):
        replace_part(PAGE, "lines", text)
    return int(any(found[one] for found in counted.values() for one in WRONG))


if __name__ == "__main__":
    sys.exit(main())
