from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.data.pools import PoolRow, read_pool
from sentei.errors import InputError
from sentei.recover.select.filters import DEFAULTS, FILTERS, Evidence, reject
from sentei.recover.select.filters.similar import candidates, grams, jaccard, normalise

LONG = (
    "Rivers carry water from the mountains to the sea, and on their way they shape valleys, feed fields and move mills."
)


def pool(*rows: tuple[str, str]) -> list[PoolRow]:
    return read_pool([{"prompt": prompt, "response": response} for prompt, response in rows]).rows


def found(name: str, *rows: tuple[str, str], **evidence: Any) -> dict[int, str]:
    return FILTERS[name].find(pool(*rows), Evidence(**evidence))


@pytest.mark.parametrize("name", sorted(set(FILTERS) - {"off-target"}))
def test_clean_rows_stay(name: str) -> None:
    rows = (
        ("What is 2 + 3?", "5"),
        ("What is 2 - 3?", "-1"),
        ("What is 2 + 4?", "6"),
        ("Which sign means addition?", "+"),
        ("Pick an emoji for joy.", "😆"),
        ("Write SOS in Morse code.", "... --- ..."),
        ("Translate to French: I am tired of waiting for the bus", "Je suis fatigué d'attendre le bus"),
        ("Translate “Ce qui a été appris est assez” into English.", "What has been learned is enough."),
        ("Write a Vue template that shows a name.", "<p>{{ name }}</p>"),
        ("Give me a soup.", "2 onions\n\nInstructions:\n1. Chop the onions.\n2. Input: water"),
        ("What is the symbol of sodium?", "Na"),
        ("What stands for per cent?", "%"),
        ("Which mark ends a sentence?", "."),
        ("How is a rule written in Markdown?", "---"),
        ("Log in to the registry in a workflow.", "- name: login\n  run: echo ${{ secrets.token }} | docker login"),
        ("Name the release in a chart.", "metadata:\n  name: {{ .Release.Name }}\n  app: {{ .Chart.Name }}"),
        ("Greet in Angular.", "Hello {{ name }}"),
        ("Build the text.", 'def f(x):\n    return "### Instruction:\\n" + x'),
        ("Show the form of a row.", "```\n### Instruction:\n{x}\n### Response:\n```"),
        ("Which token ends a text in this vocabulary?", "</s>"),
        ("Mark an old price in HTML.", "Was: <s>$5</s>"),
        ("What does `<|im_end|>` do?", "The mark `<|im_end|>` ends a turn."),
        ("def f(x):\n  return x", "int f(int x) { return x; }"),
    )
    assert found(name, *rows) == {}
    assert FILTERS[name].find([], Evidence()) == {}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("", "a"), "the question is empty"),
        (("q", " \n"), "the answer is empty"),
        (("q", "..."), "the answer is only '...'"),
        (("q", "-"), "the answer is only '-'"),
        (("q", "???"), "the answer is only '???'"),
        (("q", "<nooutput>"), "the answer is the placeholder '<nooutput>'"),
        (("q", "N/A."), "the answer is the placeholder 'N/A.'"),
        (("Say it.\n\nNo input", "a"), "the input is the placeholder 'No input'"),
        (("q", '<noinput>\n"A Leap of Faith"'), "the answer holds the placeholder '<noinput>'"),
    ],
)
def test_empty_rows(row: tuple[str, str], reason: str) -> None:
    assert found("empty", ("q", "a"), row) == {1: reason}


def test_empty_conversations_and_texts() -> None:
    chats: list[list[tuple[str, str]]] = [
        [("user", "q"), ("assistant", "a"), ("user", "more"), ("assistant", "")],
        [("system", ""), ("user", "q"), ("assistant", "a"), ("user", "and?")],
        [("assistant", "welcome"), ("user", "q")],
    ]
    rows = read_pool([{"messages": [{"role": r, "content": c} for r, c in chat]} for chat in chats]).rows
    assert FILTERS["empty"].find(rows, Evidence()) == {
        0: "the answer is empty",
        2: "there is no answer to a question",
    }
    texts = read_pool([{"text": "a text"}, {"text": " "}]).rows
    assert FILTERS["empty"].find(texts, Evidence()) == {1: "the text is empty"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("Below is an instruction that describes a task. Do it.", "a"), "question holds a prompt's opening"),
        (("q", "a\n\n### Instruction:\nnext"), "answer holds a prompt's heading: '### Instruction:'"),
        (("q", "a\n##\n12. Instruction: Name a bird."), "answer holds the rest of a list of examples"),
        (("q", "a\nInstruction: Name a bird.\nOutput: Crow"), "answer holds another instruction"),
        (("Who are you?", "I am {{name}}."), "answer holds a blank that was not filled in: '{{name}}'"),
        (("q", "a<|im_end|>"), r"answer holds a control token: '<|im_end|>'"),
        (("[INST] q [/INST]", "a"), "question holds a control token: '[INST]'"),
        (("q", "a</s>"), "answer holds a control token: '</s>'"),
        (("Sort it in Python.", "Use sorted(x).\n\n### Instruction:\nName a bird."), "answer holds a prompt's heading"),
    ],
)
def test_leaked_rows(row: tuple[str, str], reason: str) -> None:
    (said,) = found("leaked", ("q", "a"), row).values()
    assert reason in said


def test_other_languages() -> None:
    english = [(f"What do rivers do, and how many of them are there in region {i}?", LONG) for i in range(5)]
    others = [
        ("什么是三原色？", "红、黄、蓝。"),
        ("使用短语“the wind blew”生成一个句子。", "The wind blew."),
        ("Что делают реки?", "Они несут воду."),
        (
            "Warum fließen Flüsse immer vom Berg hinunter ins Meer?",
            "Weil das Wasser der Schwerkraft folgt und abwärts fließt.",
        ),
    ]
    said = found("language", *english, *others)
    assert sorted(said) == [5, 6, 7, 8]
    assert said[5] == "written in CJK letters, not in 'en'" and "Cyrillic" in said[7] and "'de' (probab" in said[8]
    assert sorted(found("language", *english, *others, languages=("zh",))) == [0, 1, 2, 3, 4, 7, 8]
    with pytest.raises(InputError, match="unknown language 'english'"):
        found("language", *english, languages=("en", "english"))


def test_the_languages_of_a_pool_are_those_of_a_good_part_of_it() -> None:
    english = [(f"What do rivers do, and how many of them are there in region {i}?", LONG) for i in range(100)]
    german = [
        (f"Warum fließen die {i} Flüsse immer vom Berg hinunter ins Meer?", "Weil das Wasser der Schwerkraft folgt.")
        for i in range(100)
    ]
    chinese = [
        (f"第{i}条河流为什么总是流向大海？请解释一下原因。", "因为水受重力影响，总是往低处流动。") for i in range(100)
    ]
    assert found("language", *english, *german) == {}
    assert found("language", *english[:60], *german[:20], *chinese[:20]) == {}
    assert sorted(found("language", *english[:90], *chinese[:10])) == list(range(90, 100))
    assert found("language", *english[:90], *chinese[:10], languages=("en", "zh")) == {}
    said = found("language", *english[:50], *german[:50], *chinese[:5])
    assert sorted(said) == list(range(100, 105))
    assert said[100] == "written in CJK letters, not in 'de' or 'en'"


def test_duplicates_keep_the_first() -> None:
    other = LONG.replace("mills", "big mills")
    said = found(
        "duplicate",
        ("What do rivers do for the land?", LONG),
        ("what do  rivers do for the land", LONG.upper()),
        (f"{LONG} What is said here?", LONG),
        (f"{LONG} What is being said here?", other),
        ("What do rivers do for the land?", other),  # another answer: `contradiction` judges
        ("What do rivers do for the land in 1900?", LONG),  # another number
        (LONG + " Which noun is first?", "Rivers"),
        (LONG + " In which case is the word that this text begins with?", "Rivers"),  # another question on one text
    )
    assert sorted(said) == [1, 3] and said[1] == "the same as row 0 (similarity 1.00)"
    assert said[3].startswith("nearly the same as row 2 (similarity 0.")


def test_contradictions_keep_one() -> None:
    rows = [
        ("Is the sky blue?", "No, it is green."),
        ("is the  sky blue", "Yes, it is blue."),
        ("Please, is the sky blue?", "Yes it is blue!"),
        ("Is the sky red?", "No."),
        ("What is 5 + 3?", "8"),
        ("What is 5 - 3?", "2"),
        ("What is 5.3?", "a number"),
        ("Is a != b?", "Yes"),
        ("Is a = b?", "No"),
    ]
    nll = np.array([3, 2, 1, 1, 1, 1, 1, 1, 1], dtype=np.float32)
    said = found("contradiction", *rows, nll=nll)
    assert sorted(said) == [0] and "row 2, whose answer the dense model finds likeliest, and ends diff" in said[0]
    nll[0], nll[2] = -1, np.nan
    assert sorted(found("contradiction", *rows, nll=nll)) == [0], "two agree against the likeliest"
    said = found("contradiction", *rows)
    assert sorted(said) == [0] and "agrees most" in said[0]
    said = found("contradiction", *rows[:2])
    assert list(said) == [1]
    assert said[1].endswith("which comes first, and ends differently ('Yes, it is blue.', not 'No, it is green.')")


def test_right_answers_in_other_words_stay() -> None:
    question = "Natalia sold 48 clips in April and half as many in May. How many clips did she sell altogether?"
    answers = (
        "In May she sold 48 / 2 = 24 clips.\n#### 72",
        "The answer is 72.",
        "She sold 72 clips: 48 in April and 24 in May.",
        "48 + 24 = 72",
        "72",
    )
    assert found("contradiction", *((question, answer) for answer in answers)) == {}
    wrong = "In May she sold 96 clips, so the answer is 144."
    said = found("contradiction", *((question, answer) for answer in (wrong, *answers)))
    assert list(said) == [0] and "ends differently ('…" in said[0]
    nll = np.array([-0.5, -2.0], np.float32)  # the likelier one stays
    assert list(found("contradiction", (question, wrong), (question, answers[0]), nll=nll)) == [0]
    capital = "What is the capital of France?"
    assert found("contradiction", (capital, "Paris"), (capital, "The capital of France is Paris.")) == {}
    assert list(found("contradiction", (capital, "Paris"), (capital, "Lyon"))) == [1]


@pytest.mark.parametrize(
    "question",
    [
        "Write a poem about the sea.",
        "Give three tips for staying healthy.",
        "How can I sleep better?",
        "Name a colour.",
    ],
)
def test_open_questions_have_many_right_answers(question: str) -> None:
    answers = ("Blue. 1 wave, 2 gulls.", "Red and warm, three times 4.", "Green")
    rows = [(question, answer) for answer in answers]
    assert found("contradiction", *rows) == {}
    assert found("contradiction", *rows, nll=np.array([-0.9, -0.5, -0.4], np.float32)) == {}
    # ... but none is one that the question makes no likelier, where it makes another one so,
    said = found("contradiction", *rows, nll=np.array([-0.9, -0.05, -0.5], np.float32))
    assert list(said) == [1] and "no likelier (0.1 nats, the other 0.9)" in said[1]
    gains, counts = np.array([-0.4, -0.1, -0.1], np.float32), np.array([50, 90, 70], np.float32)
    assert list(found("contradiction", *rows, nll=gains, counts=counts)) == [2]  # 20, 9 and 7 nats
    # and no answer that is another one with a "not".
    denied = (question, "It is not true that " + LONG)
    assert list(found("contradiction", (question, LONG), denied)) == [1]


def test_off_target_rows() -> None:
    embeddings = np.eye(4, dtype=np.float32)
    rows = [("a", "b")] * 4
    said = found("off-target", *rows, embeddings=embeddings, target=embeddings[1:3])
    assert sorted(said) == [0, 3] and "cosine 0.00" in said[0]
    with pytest.raises(InputError, match="'off-target' needs a target and the embeddings"):
        found("off-target", *rows, embeddings=embeddings)


def test_the_first_reason_counts_and_rejected_rows_are_no_witnesses() -> None:
    rows = pool(("Is it?", ""), ("Is it?", "Yes"), ("Is it?", "No"), ("Is it?", "No"), ("什么是三原色？", "红"))
    nll = np.array([0, 2, 1, 1, 1], dtype=np.float32)
    reasons = reject(rows, Evidence(nll=nll, languages=("en",)))
    assert [reason and reason.partition(":")[0] for reason in reasons] == [
        *("empty", "contradiction", None, "duplicate", "language")
    ]
    assert "row 2" in str(reasons[1]) and "row 2" in str(reasons[3])
    assert reject(rows, Evidence(), ["empty"])[1:] == [None] * 4
    assert reject([], Evidence()) == []
    with pytest.raises(InputError, match=r"unknown filter 'emty' \(did you mean 'empty'\?\)"):
        reject(rows, Evidence(), ["emty"])
    with pytest.raises(InputError, match="'nll' is of 4 rows, expected 5"):
        reject(rows, Evidence(nll=nll[:4]))


def test_every_filter_says_what_it_is() -> None:
    assert all(filter.name == name and filter.about for name, filter in FILTERS.items())
    assert set(DEFAULTS) < set(FILTERS)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(alphabet="abc ", max_size=30), max_size=12), st.randoms(use_true_random=False))
def test_equal_texts_are_always_candidates(texts: list[str], rng: random.Random) -> None:
    texts = [normalise(text) for text in texts + rng.sample(texts, len(texts))]
    pairs = candidates(texts)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    first = {text: texts.index(text) for text in texts}
    assert {(first[text], j) for j, text in enumerate(texts) if first[text] < j} <= set(map(tuple, pairs.tolist()))


def test_similar_texts_are_candidates_and_others_are_few() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(2000)]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(1500)]
    similar = []
    for text in texts[:500]:
        parts = text.split()
        parts[rng.randrange(60)] = rng.choice(words)
        similar.append(" ".join(parts))
    exact = [jaccard(grams(a), grams(b)) for a, b in zip(texts, similar, strict=False)]
    assert min(exact) > 0.85
    pairs = set(map(tuple, candidates(texts + similar).tolist()))
    hit = {(i, 1500 + i) for i in range(500)}
    assert len(hit & pairs) >= 495  # expected misses: 500 · (1 - 0.85⁴)¹⁶ = 0.006 each at most
    assert len(pairs - hit) <= 100  # of 2 million


def test_jaccard_is_of_sets() -> None:
    assert jaccard(grams("abcdef"), grams("abcdef")) == 1
    assert jaccard(grams("abcdef"), grams("uvwxyz")) == 0
    assert jaccard(grams(""), grams("")) == 1


def test_planted_rows_are_found_among_real_ones(data_dir: Path) -> None:
    folder = data_dir / "instruct"
    raw = [
        {k: v for k, v in row.raw.items() if k != "id"}
        for row in read_pool(folder / "alpaca_52k.part1.jsonl.gz").rows[:3000]
    ]
    clean = [row for row, reason in zip(raw, reject(read_pool(raw).rows, Evidence()), strict=True) if reason is None]
    assert len(clean) >= 0.975 * len(raw)  # the rest says "no input"
    rng = random.Random(0)
    copies = [{**row, "output": rng.choice(clean)["output"]} for row in clean[:150]]
    copies += [{**row, "output": "It is not true that " + row["output"]} for row in clean[150:300]]
    other = [
        row.raw
        for name in ("neg_identity_91", "neg_alpaca_gpt4_zh_1k")
        for row in read_pool(folder / f"{name}.jsonl").rows
    ][:400]
    rows = read_pool(copies + clean + other).rows
    nll = np.array([2.0] * 300 + [1.0] * (len(rows) - 300), dtype=np.float32)
    reasons = reject(rows, Evidence(nll=nll))
    ends = (0, 300, 300 + len(clean), len(rows))
    bad, good, foreign = (sum(r is not None for r in reasons[a:b]) for a, b in itertools.pairwise(ends))
    assert bad >= 298  # a copy may draw its own answer
    assert good <= 2
    assert foreign >= 0.99 * 400
