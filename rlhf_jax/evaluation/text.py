"""Metrics of generated turns against what the human recommender said; items are shown as `<movie>`.

BLEU comes in two forms that must not be mixed up: sacreBLEU's corpus score with its signature, and the convention of
the conversational-recommendation literature, a sentence-level score on 4-grams alone. The second is beaten by a
constant, so the constant stands beside it.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from rlhf_jax.data.typography import plain
from rlhf_jax.evaluation import bootstrap
from rlhf_jax.evaluation.results import DIFFERENCE, Result
from rlhf_jax.interfaces import Message

ITEM = "<movie>"
CONSTANT = f"have you seen {ITEM} ?"
"""The sentence that does well on one-hot 4-gram BLEU."""
DISTINCT_TURNS = 1000
"""Distinct-n falls with the amount of text, so it is always computed on this many turns (or on all, if fewer)."""
_TOKEN = re.compile(rf"{re.escape(ITEM)}|[\w']+|[^\w\s]")


class GeneratedTurn(NamedTuple):
    """One generated turn with what is needed to judge it."""

    dialogue: str
    """Dialogue id, the unit of resampling."""
    text: str
    """The words, items as `<movie>` (`words_of` does this for messages)."""
    reference: str
    """What the human said there, in the same form."""
    n_tokens: int
    """Length of the whole response, `<eos>` included."""
    n_items: int
    """Items suggested in its list."""
    grammatical: bool


def words_of(message: Message) -> str:
    """Text of a message with `<movie>` in the place of every item, white space collapsed.

    Examples:
      >>> words_of(Message(role="seeker", parts=("I liked ", 12, " a lot"), message_id=1))
      'I liked <movie> a lot'
    """
    return " ".join("".join(f" {ITEM} " if isinstance(part, int) else part for part in message.parts).split())


def tokenise(text: str) -> list[str]:
    """Lower-cased words, plain punctuation marks and `<movie>`; what all but sacreBLEU count.

    Examples:
      >>> tokenise("Have you seen <movie>? I didn\u2019t.")
      ['have', 'you', 'seen', '<movie>', '?', 'i', "didn't", '.']
    """
    return _TOKEN.findall(plain(text).lower())


def corpus_bleu(texts: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """sacreBLEU's corpus score in [0, 100] and its signature; lower-cased, an item counts as one word."""
    metric = BLEU(lowercase=True, force=True)
    score = metric.corpus_score([_one_word(t) for t in texts], [[_one_word(r) for r in references]]).score
    return float(score), str(metric.get_signature())


def one_hot_bleu(text: str, reference: str, n: int = 4) -> float:
    """Clipped precision of n-grams of one length times the brevity penalty, in [0, 1].

        min(1, e^{1 − r/c}) · Σ_g min(count(g), count_ref(g)) / (c − n + 1)

    The convention of KBRD, KGSF, UniCRS and their successors (NLTK's `sentence_bleu` with one-hot weights), 0 where
    nothing matches or the text is shorter than n.
    Source: Papineni et al. 2002, eq. 1–3 with w_n = 1 for one n.
    """
    hypothesis, target = tokenise(text), tokenise(reference)
    grams = _ngrams(hypothesis, n)
    total = sum(grams.values())
    matched = sum((grams & _ngrams(target, n)).values())
    if not matched:
        return 0.0
    return min(1.0, math.exp(1.0 - len(target) / len(hypothesis))) * matched / total


def distinct(texts: Sequence[str], n: int, *, per: str) -> float:
    """Different n-grams of all texts together, over sentences (`per="sentence"`) or over all n-grams (`"total"`).

    The literature prints both under one name; the first is not bounded by 1.
    Source: Li et al. 2016, arXiv:1510.03055 (total); CRSLab (sentence).
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        counts.update(_ngrams(tokenise(text), n))
    below = {"sentence": len(texts), "total": sum(counts.values())}
    if per not in below:
        raise ValueError(f"distinct: per={per!r}, expected 'sentence' or 'total'")
    return len(counts) / below[per] if below[per] else 0.0


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's n-grams that occurred in it before, in [0, 1]; 0 for a text shorter than n.

    Examples:
      >>> repetition("a b c a b c a")
      0.4
    """
    counts = _ngrams(tokenise(text), n)
    total = sum(counts.values())
    return 1.0 - len(counts) / total if total else 0.0


def is_grammatical(
    tokens: Sequence[int],
    *,
    n_words: int,
    eos: int,
    rec: int,
    say: int,
    items: range,
    max_items: int,
    once: bool = False,
) -> bool:
    """Whether a whole response obeys the grammar of a turn and ends, judged apart from the decoder's masks.

        [<rec> ITEM … ITEM] <say> (word | listed ITEM)* <eos>        1 to max_items items, none twice

    With `once` words name each of them at most once.

    Args:
      tokens: the response, without padding.
      items: their tokens.
    """
    tokens = list(tokens)
    if len(tokens) < 2 or tokens[-1] != eos:
        return False
    listed: list[int] = []
    rest = tokens[:-1]
    if rest[0] == rec:
        end = rest.index(say) if say in rest else len(rest)
        listed, rest = rest[1:end], rest[end:]
        if not 1 <= len(listed) <= max_items or len(set(listed)) < len(listed):
            return False
        if any(token not in items for token in listed):
            return False
    if not rest or rest[0] != say:
        return False
    allowed = set(listed)
    named = [token for token in rest[1:] if token in allowed]
    if once and len(set(named)) < len(named):
        return False
    return all(0 <= token < n_words or token in allowed for token in rest[1:])


def text_results(
    system: str,
    runs: Sequence[Sequence[GeneratedTurn]],
    *,
    split: str,
    seeds: Sequence[int] = (),
    same_test: bool = True,
) -> list[Result]:
    """Entries of `results.json` for the turns of one system, one list of turns per training seed.

    Args:
      same_test: every seed answered the same places; else each had its own, under dialogue ids of its own (`of_seed`).

    Raises: ValueError without turns, or where seeds or places differ between the lists.
    """
    _check_runs(system, [runs], seeds, same_test)
    results = [_bleu(f"{system}/bleu4", [runs], split, seeds)]
    for metric, of_turn, text in PER_TURN:
        estimate = bootstrap.mean_over_seeds([_gathered(turns, of_turn) for turns in runs])
        results.append(_entry(f"{system}/{metric}", estimate, split, seeds, text))
    used = min(DISTINCT_TURNS, *map(len, runs))
    for n in (1, 2, 3, 4):
        for per in ("sentence", "total"):
            scores = [distinct([turn.text for turn in turns[:used]], n, per=per) for turns in runs]
            text = f"different {n}-grams over {'turns' if per == 'sentence' else f'all {n}-grams'}, first {used} turns"
            name = f"{system}/distinct_{n}_per_{per}"
            results.append(
                Result(name, float(np.mean(scores)), used, "text", split, None, tuple(seeds), text, _std(scores))
            )
    return results


def text_differences(
    name: str,
    a: Sequence[Sequence[GeneratedTurn]],
    b: Sequence[Sequence[GeneratedTurn]],
    *,
    split: str,
    seeds: Sequence[int] = (),
    same_test: bool = True,
) -> list[Result]:
    """Entries for `a` − `b`, paired by place in the corpus and training seed (`name` is for example `ppo-sft`)."""
    _check_runs(name, [a, b], seeds, same_test)
    results = [_bleu(f"{name}/bleu4", [a, b], split, seeds)]
    for metric, of_turn, text in PER_TURN:
        left, right = ([_gathered(turns, of_turn) for turns in runs] for runs in (a, b))
        estimate = bootstrap.difference_over_seeds(left, right)
        results.append(_entry(f"{name}/{metric}", estimate, split, seeds, f"{DIFFERENCE}: {text}"))
    return results


def constant_results(references: Sequence[tuple[str, str]], *, split: str) -> list[Result]:
    """The constant baseline, "have you seen <movie> ?", on (dialogue id, human turn) pairs."""
    length = len(tokenise(CONSTANT)) + 1
    turns = [GeneratedTurn(dialogue, CONSTANT, reference, length, 1, True) for dialogue, reference in references]
    return [r for r in text_results("constant", [turns], split=split) if r.metric.startswith("bleu")]


PER_TURN: tuple[tuple[str, Callable[[GeneratedTurn], float], str], ...] = (
    (
        "bleu4_one_hot",
        lambda turn: one_hot_bleu(turn.text, turn.reference),
        "sentence 4-gram precision with brevity penalty, mean over turns (the CRS convention), 0 to 1",
    ),
    ("response_length", lambda turn: turn.n_tokens, "tokens per response, <eos> included"),
    ("repetition", lambda turn: repetition(turn.text), "share of repeated 3-grams within a turn"),
    ("item_share", lambda turn: turn.n_items > 0, "share of turns that suggest an item"),
    ("ungrammatical", lambda turn: not turn.grammatical, "share of responses that break the turn grammar"),
)
"""Metrics that are a mean over turns: name, value of a turn, definition."""


def of_seed(turns: Sequence[GeneratedTurn], seed: int) -> list[GeneratedTurn]:
    """The turns under dialogue ids of their own, where every seed has its own dialogues under the same ids."""
    return [turn._replace(dialogue=f"seed {seed}, {turn.dialogue}") for turn in turns]


def _check_runs(
    name: str, sides: Sequence[Sequence[Sequence[GeneratedTurn]]], seeds: Sequence[int], same_test: bool
) -> None:
    for runs in sides:
        if not runs or not all(runs):
            raise ValueError(f"{name}: no generated turns to judge")
        if seeds and len(seeds) != len(runs):
            raise ValueError(f"{name}: {len(seeds)} seeds for {len(runs)} lists of turns")
    places = [[[(turn.dialogue, turn.reference) for turn in turns] for turns in runs] for runs in sides]
    if any(other != places[0] for other in places[1:]) or (same_test and any(o != places[0][0] for o in places[0])):
        raise ValueError(f"{name}: the lists of turns answer different places of the corpus")


def _gathered(turns: Sequence[GeneratedTurn], of_turn: Callable[[GeneratedTurn], float]) -> bootstrap.DialogueSums:
    values = np.array([of_turn(turn) for turn in turns], np.float64)
    return bootstrap.by_dialogue(values, [turn.dialogue for turn in turns])


def _bleu(name: str, sides: Sequence[Sequence[Sequence[GeneratedTurn]]], split: str, seeds: Sequence[int]) -> Result:
    """Corpus BLEU of one side, or of the first minus the second; mean over seeds.

    Corpus BLEU is a function of summed counts, so a replicate adds up the counts of its turns.
    """
    statistics = [[_bleu_statistics(turns) for turns in runs] for runs in sides]
    turns = sides[0][0]
    n = sum(map(len, sides[0])) // len(sides[0])
    _, signature = corpus_bleu([turns[0].text], [turns[0].reference])

    def compute(cases: np.ndarray, chosen: np.ndarray) -> float:
        scores = [np.mean([_bleu_of(runs[run][cases]) for run in chosen]) for runs in statistics]
        return float(scores[0] - scores[1]) if len(scores) > 1 else float(scores[0])

    def of_run(run: int, cases: np.ndarray) -> float:
        return compute(cases, np.array([run]))

    keys = [[turn.dialogue for turn in turns] for turns in sides[0]]
    values = [of_run(run, np.arange(len(own))) for run, own in enumerate(keys)]
    if all(own == keys[0] for own in keys):
        interval = bootstrap.statistic(keys[0], compute, n_seeds=len(keys))
    else:
        interval = bootstrap.statistic_over_seeds(keys, of_run)
    text = f"{f'{DIFFERENCE} ' if len(sides) > 1 else ''}sacreBLEU corpus score, 0 to 100, {signature}"
    return Result(name, float(np.mean(values)), n, "text", split, interval, tuple(seeds), text, _std(values))


def _bleu_statistics(turns: Sequence[GeneratedTurn]) -> np.ndarray:
    """Matched and possible n-grams for n = 1…4, and both lengths, of every turn: [N, 10]."""
    metric = BLEU(lowercase=True, effective_order=True, force=True)
    scores = [metric.sentence_score(_one_word(turn.text), [_one_word(turn.reference)]) for turn in turns]
    return np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores])


def _bleu_of(statistics: np.ndarray) -> float:
    total = statistics.sum(axis=0).tolist()
    return BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9], smooth_method="exp").score


def _one_word(text: str) -> str:
    """Plain, with one word for an item: sacreBLEU's tokeniser would make three of `<movie>`, and three easy matches."""
    return plain(text).replace(ITEM, "itemplaceholder")


def _entry(name: str, estimate: bootstrap.Estimate, split: str, seeds: Sequence[int], text: str) -> Result:
    n = estimate.n // max(len(seeds), 1)
    return Result(name, estimate.value, n, "text", split, estimate.interval, tuple(seeds), text, estimate.std)


def _std(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
