"""`select`: the rows of a pool that heal a pruned model, chosen by where pruning did damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentei.data.chat import Sample, encode, idle, owners, remarks
from sentei.data.pools import Pool, PoolRow, read_pool
from sentei.data.tokens import check_ids
from sentei.errors import InputError
from sentei.families.streamed import streamed_blocks
from sentei.files import hash_json
from sentei.inference.walk import check_walk
from sentei.memory import check_memory
from sentei.models.identity import hash_tokenizer
from sentei.models.load import Loaded, context_length
from sentei.outputs import work_dir
from sentei.places import check_output
from sentei.progress import Progress, shown
from sentei.recover.select.cluster import Clustering, cluster
from sentei.recover.select.damage import TOP, score
from sentei.recover.select.embed import LIBRARIES, MODEL, embed, embedder_bytes
from sentei.recover.select.filters import Evidence
from sentei.recover.select.filters.contradiction import rivals, strangers
from sentei.recover.select.filters.language import check_languages
from sentei.recover.select.names import keywords, typical
from sentei.recover.select.pair import doubts, same_tokens, shared_tokens
from sentei.recover.select.picking import Amount
from sentei.recover.select.reference import Reference
from sentei.recover.select.rejections import filter_names, rejections, said
from sentei.recover.select.selection import Scored, Selection
from sentei.recover.select.strategies import find_strategy
from sentei.recover.select.write import write

if TYPE_CHECKING:
    import torch

LENGTH = 512


def select(
    dense: Loaded,
    pruned: Loaded,
    pool: Pool | str | Path | Sequence[dict[str, Any]],
    out: str | Path,
    *,
    budget: str | float,
    strategy: str = "auto",
    filters: Sequence[str] | None = None,
    clusters: int | None = None,
    length: int = LENGTH,
    target: Sequence[str] = (),
    embedder: str | None = None,
    top: int = TOP,
    ifd: bool = False,
    languages: Sequence[str] = (),
    strict: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
    **choice: Any,
) -> Selection:
    """Scores a pool by damage, and writes a selection directory.

    A killed scoring goes on where it was, when it is called again with the same models, pool and settings. What can
    be seen to be wrong is seen before the models read anything.

    Args:
        dense: the model before pruning.
        pruned: the model after it, by whatever tool, with the same tokenizer.
        pool: candidates; see `read_pool`.
        out: the directory to write.
        budget: share of the pool (0.2), number of rows (500) or of tokens ("40000 tokens").
        strategy: a name in `STRATEGIES`.
        filters: names of filters; default: what the strategy asks for.
        clusters: how many; default: by the rule of `cluster`.
        length: tokens at which a row is cut.
        target: texts of the wanted capability: clusters count by how many of these fall into them.
        embedder: of sentences; default: the embedded one.
        top: tokens of the teacher that are kept per position, for distillation.
        ifd: score what the strategy "ifd" needs too, so that it can be selected with later.
        languages: that rows may be in (ISO 639-1); default: those of a good part of the pool.
        strict: refuse a row that cannot be read, does not fit, or that the chat template refuses; else it is skipped,
            or rejected.
        seed: of clustering and of what is random.
        overwrite: replace what is at `out`.
        progress: told about each step.
        choice: `temperature`, `weights`, `minimum`, `ids`: see `choose`.

    Raises:
        InputError: tokenizers that differ, an unreadable pool, a budget that the pool cannot fill, too little memory
            for streamed models.
    """
    out, progress = check_output(Path(out), overwrite=overwrite), shown(progress)
    amount, names = Amount.parse(budget), filter_names(find_strategy(strategy), filters, bool(target))
    same_tokens(dense, pruned)
    check_languages(languages)
    for loaded in (dense, pruned):
        check_scoring(loaded, embedder, progress)
    pool = pool if isinstance(pool, Pool) else read_pool(pool, strict=strict)
    progress.say(f"pool: {len(pool.rows):,} rows of {pool.source}, read as {pool.format}")
    notes = doubts(dense, pruned)
    context = min(context_length(dense.model), context_length(pruned.model))
    length = min(length, context)
    samples = encode(pool.rows, dense.tokenizer, length=length, strict=strict)
    check_ids(dense.tokenizer, (sample.ids.tolist() for sample in samples), shared_tokens(dense.model, pruned.model))
    owner, nothing = owners(samples), idle(samples)
    tokens = np.bincount(owner, [len(sample.ids) for sample in samples], len(pool.rows)).astype(np.int64)
    why = "the models see no more" if length == context else "--length sets it"
    notes += pool.skipped.lines("are skipped") + remarks(samples, pool.rows, length, why)
    for note in notes:
        progress.say(f"  {note}")
    if len(nothing) == len(pool.rows):
        raise InputError(f"{pool.source}: no row has an answer to learn from; {'; '.join(notes)}")
    if not find_strategy(strategy).takes_all:
        amount.check(len(pool.rows), int(tokens.sum()))
    alone = ifd or strategy == "ifd"
    scoring = {
        "dense": dense.digest,
        "pruned": pruned.digest,
        "dtypes": [str(loaded.model.dtype) for loaded in (dense, pruned)],
        "tokenizer": hash_tokenizer(dense.tokenizer),
        "pool": hash_json([row.raw for row in pool.rows]),
        "length": length,
        "top": top,
        "alone": alone,
    }
    with work_dir(out, scoring) as work:
        where = dense.model.device
        vectors = _embedded([row.prompt for row in pool.rows], embedder, progress, where)
        goal = _embedded(target, embedder, progress, where) if target else None
        found = cluster(vectors, clusters=clusters, seed=seed)
        labels = found.labels.astype(np.int64)
        scores = score(
            dense.model,
            pruned.model,
            samples,
            work,
            top=top,
            alone=alone,
            strangers=_strangers(pool.rows, samples, owner),
            progress=progress,
        ).of_rows(owner, len(pool.rows))
        evidence = Evidence(vectors, scores.unlikely, scores.counts, tuple(languages), goal)
        rejected = rejections(pool.rows, scores, evidence, names, nothing)
        for line in said(rejected, pool.rows):
            progress.say(f"  {line}")
        scored = Scored(
            pool,
            scores,
            tokens,
            labels,
            found.coordinates,
            owner,
            rejected,
            None if goal is None else _target_share(vectors, goal, found),
            {
                "models": {"dense": dense.name, "pruned": pruned.name},
                "scoring": scoring,
                "filters": names,
                "notes": notes,
                "clusters": {
                    "names": keywords(_texts(pool.rows, found)),
                    "typical": typical([row.prompt for row in pool.rows], vectors, found.labels, found.clusters),
                    "rule": found.rule,
                },
                "languages": [*languages],
                "idle": {str(row): reason for row, reason in sorted(nothing.items())},
            },
            work,
            Reference.of(vectors, labels, embedder or MODEL, seed),
        )
        return write(scored, out, budget, strategy, seed, overwrite, choice)


def check_scoring(loaded: Loaded, embedder: str | None = None, progress: Progress | None = None) -> None:
    """Says and checks what embedding, and then scoring with a streamed model, take.

    Raises:
        InputError: too little memory.
    """
    if (blocks := streamed_blocks(loaded.model)) is not None:
        needed = LIBRARIES + embedder_bytes(embedder or MODEL)
        check_memory(blocks.memory, needed, "embedding the pool", "choose a smaller --embedder")
        check_walk(loaded.model, f"scoring with {loaded.name}", progress, beside=LIBRARIES)


def reselect(
    selection: Selection | str | Path,
    out: str | Path,
    *,
    budget: str | float,
    strategy: str | None = None,
    filters: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **choice: Any,
) -> Selection:
    """Another selection from the scores of one: no model is needed.

    What is not given is as it was: with the same budget the same rows come out. Only another strategy brings its own
    filters, and starts from the usual choices.

    Args:
        selection: what `select` wrote.
        out: the directory to write; not that of the selection.
        budget: as for `select`.
        strategy: default: that of the selection.
        filters: names of filters; "off-target" has to be asked for when the models read the pool.
        languages: as for `select`.
        seed: of what is random.
        overwrite: replace what is at `out`.
        progress: told what is rejected, where other rows are.
        choice: see `choose`.

    Raises:
        InputError: not a selection, a strategy whose scores are not there, a budget that the pool cannot fill.
    """
    progress = shown(progress)
    selection = selection if isinstance(selection, Selection) else Selection.load(selection)
    out = check_output(Path(out), overwrite=overwrite)
    if out.resolve() == selection.directory.resolve():
        raise InputError(f"{out} is the selection that is read; choose another --out")
    scored, before = selection.scored(), selection.about["choice"]
    if strategy in (None, selection.about["strategy"]):
        strategy, usual, names = selection.about["strategy"], before, filters
    else:
        usual, names = (
            {"seed": before["seed"]},
            filter_names(find_strategy(strategy), filters, scored.target is not None),
        )
    choice = {**usual, **choice} | ({} if seed is None else {"seed": seed})
    names = scored.about["filters"] if names is None else [*names]
    wanted = scored.about["languages"] if languages is None else [*languages]
    if (names, wanted) != (scored.about["filters"], scored.about["languages"]):
        check_languages(wanted)
        evidence = Evidence(nll=scored.scores.unlikely, counts=scored.scores.counts, languages=tuple(wanted))
        nothing = {int(row): reason for row, reason in scored.about["idle"].items()}
        rejected = rejections(scored.pool.rows, scored.scores, evidence, names, nothing)
        scored = replace(scored, rejections=rejected, about={**scored.about, "filters": names, "languages": wanted})
        for line in said(rejected, scored.pool.rows):
            progress.say(line)
    return write(scored, out, budget, strategy, choice.pop("seed"), overwrite, choice)


def _embedded(
    texts: Sequence[str], embedder: str | None, progress: Progress, device: torch.device
) -> NDArray[np.float32]:
    return embed(list(texts), model=embedder or MODEL, device=device, progress=progress)


def _strangers(rows: Sequence[PoolRow], samples: Sequence[Sample], owner: NDArray[np.int64]) -> dict[int, int]:
    """Sample -> one of a row with another question, for the rows that share a question: see `strangers`."""
    first = np.searchsorted(owner, np.arange(len(rows)))  # sample of each row
    usable = [row for row in range(len(rows)) if samples[int(first[row])].response[1:].any()]
    sizes = {row: int(samples[int(first[row])].response.argmax()) for row in usable}
    found = strangers(rivals(rows), sizes)
    return {
        sample: int(first[found[row]])
        for sample, row in enumerate(owner.tolist())
        if row in found and samples[sample].response[1:].any()
    }


def _target_share(vectors: NDArray[np.float32], goal: NDArray[np.float32], found: Clustering) -> NDArray[np.float64]:
    """Share of the target's texts in each cluster [K]: each text goes where the row nearest to it is."""
    owner = [int(found.labels[int((vectors @ text).argmax())]) for text in goal]
    share: NDArray[np.float64] = np.bincount(owner, minlength=found.clusters) / len(goal)
    return share


def _texts(rows: Sequence[PoolRow], found: Clustering) -> list[list[str]]:
    texts: list[list[str]] = [[] for _ in range(found.clusters)]
    for row, label in zip(rows, found.labels, strict=True):
        texts[int(label)].append(row.prompt)
    return texts
