"""Replies token by token: texts, contexts, and which policy is compared with which."""

import pytest

from rlhf_jax.assessment.reply_tokens import comparisons, context_messages, token_texts
from rlhf_jax.data.vocabulary import Vocabulary


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (["sft"], {"sft": ("sft", "sft")}),
        (["sft", "prior", "grpo"], {"sft": ("grpo", "prior"), "prior": ("grpo", "prior"), "grpo": ("grpo", "prior")}),
        (["sft", "ppo", "grpo"], {"sft": ("grpo", "sft"), "ppo": ("ppo", "sft"), "grpo": ("grpo", "sft")}),
    ],
)
def test_a_reply_is_judged_by_its_own_aligned_policy_or_by_the_newest(stages: list[str], expected: dict) -> None:
    assert comparisons(stages) == expected


def test_every_token_has_its_text_and_every_message_its_role(vocab: Vocabulary) -> None:
    titles = {11: "Film <11>"}
    words = vocab.encode_text("hello there")
    reply = [vocab.say, *words, vocab.rec, vocab.item_token(11), vocab.item_token(12), vocab.eos]
    texts = token_texts(vocab, reply, titles)
    assert texts[0] == " <say>" and texts[-4:] == [" <rec>", " Film <11>", " @12", " <eos>"]
    assert "".join(texts[1:-4]) == "hello there"
    prompt = [*words[-1:], vocab.seeker, *words, vocab.item_token(11), vocab.recommender, *words, vocab.recommender]
    cut, asked, answered = context_messages(vocab, prompt, titles)
    assert (
        cut[0] == "cut" and asked == ("seeker", "hello there Film <11>") and answered == ("recommender", "hello there")
    )
