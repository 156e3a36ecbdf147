"""`select`: the rows of a pool that heal a pruned model, chosen by where pruning did damage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentei.data.chat import encode
from sentei.data.pools import Pool, PoolRow, read_pool
from sentei.errors import InputError, unknown
from sentei.files import hash_json, write_json, write_text
from sentei.models.identity import hash_tokenizer
from sentei.models.load import Loaded, context_length
from sentei.outputs import atomic_dir, check_output, work_dir
from sentei.progress import Progress, shown
from sentei.recover.select.about import SCHEMA
from sentei.recover.select.cluster import Clustering, cluster
from sentei.recover.select.damage import TOP, Scores, score
from sentei.recover.select.filters import DEFAULTS, FILTERS, Evidence, reject
from sentei.recover.select.filters.contradiction import rivals
from sentei.recover.select.names import keywords, typical
from sentei.recover.select.pair import doubts, same_tokens
from sentei.recover.select.picking import Amount, pick
from sentei.recover.select.selection import Scored, Selection, write_rows, write_scored
from sentei.recover.select.strategies import STRATEGIES, Candidates, Strategy

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
        seed: of clustering and of what is random.
        overwrite: replace what is at `out`.
        progress: told about each step.
        choice: `temperature`, `weights`, `minimum`, `ids`: see `choose`.

    Raises:
        InputError: tokenizers that differ, an unreadable pool, a budget that the pool cannot fill.
    """
    out, progress = check_output(Path(out), overwrite=overwrite), shown(progress)
    amount, names = Amount.parse(budget), _filters(find_strategy(strategy), filters, bool(target))
    same_tokens(dense, pruned)
    pool = pool if isinstance(pool, Pool) else read_pool(pool)
    progress.say(f"pool: {len(pool.rows):,} rows of {pool.source}, read as {pool.format}")
    notes = doubts(dense, pruned)
    context = min(context_length(dense.model), context_length(pruned.model))
    length = min(length, context)
    samples = encode(pool.rows, dense.tokenizer, length=length)
    tokens = np.array([len(sample.ids) for sample in samples], np.int64)
    if cut := sum(sample.truncated for sample in samples):
        why = "the models see no more" if length == context else "--length sets it"
        notes.append(f"{cut:,} rows are longer than {length} tokens and were cut there; {why}")
    for note in notes:
        progress.say(f"  {note}")
    if not find_strategy(strategy).takes_all:
        amount.check(len(samples), int(tokens.sum()))
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
        scores = score(
            dense.model,
            pruned.model,
            samples,
            work,
            top=top,
            alone=alone,
            rivals=[row for group in rivals(pool.rows) for row in group],
            progress=progress,
        )
        evidence = Evidence(embeddings=vectors, nll=scores.unlikely, target=goal)
        scored = Scored(
            pool,
            scores,
            tokens,
            found.labels.astype(np.int64),
            found.coordinates,
            _rejections(pool.rows, scores, evidence, names),
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
            },
            work,
        )
        return _write(scored, out, budget, strategy, seed, overwrite, choice)


def reselect(
    selection: Selection | str | Path,
    out: str | Path,
    *,
    budget: str | float,
    strategy: str | None = None,
    filters: Sequence[str] | None = None,
    seed: int | None = None,
    overwrite: bool = False,
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
        seed: of what is random.
        overwrite: replace what is at `out`.
        choice: see `choose`.

    Raises:
        InputError: not a selection, a strategy whose scores are not there, a budget that the pool cannot fill.
    """
    selection = selection if isinstance(selection, Selection) else Selection.load(selection)
    out = check_output(Path(out), overwrite=overwrite)
    if out.resolve() == selection.directory.resolve():
        raise InputError(f"{out} is the selection that is read; choose another --out")
    scored, before = selection.scored(), selection.about["choice"]
    if strategy in (None, selection.about["strategy"]):
        strategy, usual, names = selection.about["strategy"], before, filters
    else:
        usual, names = {"seed": before["seed"]}, _filters(find_strategy(strategy), filters, scored.target is not None)
    choice = {**usual, **choice} | ({} if seed is None else {"seed": seed})
    if names is not None and [*names] != scored.about["filters"]:
        evidence = Evidence(nll=scored.scores.unlikely)
        rejections = _rejections(scored.pool.rows, scored.scores, evidence, names)
        scored = replace(scored, rejections=rejections, about={**scored.about, "filters": [*names]})
    return _write(scored, out, budget, strategy, choice.pop("seed"), overwrite, choice)


def choose(
    scored: Scored,
    amount: Amount,
    strategy: Strategy,
    *,
    temperature: float = 1.0,
    weights: Mapping[Any, float] | None = None,
    minimum: int = 0,
    ids: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Any, Candidates]:
    """The decision itself: a `Picked`, and what the strategy looked at.

    Args:
        scored: the pool after the models have been over it.
        amount: how much.
        strategy: who decides.
        temperature: exponent on a cluster's damage; 0 makes all clusters equal, 2 favours the worst.
        weights: factors on the clusters' shares, by number of the cluster.
        minimum: rows (or tokens) that every cluster gets.
        ids: for the strategy "ids".
        seed: of what is random.
    """
    allowed = np.array([reason is None for reason in scored.rejections])
    candidates = Candidates(
        scored.pool.rows,
        scored.tokens,
        scored.labels,
        allowed,
        scored.scores,
        ids,
        temperature,
        {int(cluster): weight for cluster, weight in (weights or {}).items()},
        scored.target,
        seed,
    )
    return pick(candidates, strategy, amount, minimum), candidates


def find_strategy(name: str) -> Strategy:
    """A strategy by name.

    Raises:
        InputError: there is none of this name.
    """
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return STRATEGIES[name]


def _write(
    scored: Scored,
    out: Path,
    budget: str | float,
    strategy: str,
    seed: int,
    overwrite: bool,
    choice: dict[str, Any],
) -> Selection:
    """Chooses, and writes the directory: all of it or nothing."""
    from sentei.recover.select.summary import manifest, summarise
    from sentei.report.selection import render

    amount, chosen_strategy = Amount.parse(budget), find_strategy(strategy)
    picked, candidates = choose(scored, amount, chosen_strategy, seed=seed, **choice)
    chosen = [int(row) for row in picked.rows]
    if choice.get("weights"):
        choice = choice | {
            "weights": {str(cluster): weight for cluster, weight in choice["weights"].items()}
        }  # as JSON
    about = {
        "schema_version": SCHEMA,
        "strategy": strategy,
        "budget": {
            "asked": str(budget),
            "unit": amount.unit,
            "selected": len(chosen),
            "tokens": int(scored.tokens[chosen].sum()),
        },
        "pool": {"source": scored.pool.source, "format": scored.pool.format, "rows": len(scored.pool.rows)},
        **scored.about,
        "choice": dict(sorted((choice | {"seed": seed}).items())),
        "chosen": chosen,
    }
    rows = manifest(scored, candidates, picked)
    with atomic_dir(out, overwrite=overwrite) as scratch:
        write_scored(scored, scratch)
        write_rows(scratch / "selected.jsonl", [scored.pool.rows[row].raw for row in chosen])
        write_rows(scratch / "manifest.jsonl", rows)
        write_json(scratch / "selection.json", about)
        write_text(scratch / "selection.html", render(summarise(scored, about, candidates, picked, rows)))
    return Selection(out, about, chosen)


def _embedded(
    texts: Sequence[str], embedder: str | None, progress: Progress, device: torch.device
) -> NDArray[np.float32]:
    from sentei.recover.select.embed import MODEL, embed

    return embed(list(texts), model=embedder or MODEL, device=device, progress=progress)


def _filters(strategy: Strategy, asked: Sequence[str] | None, target: bool) -> list[str]:
    """The filters that are asked for, else those of the strategy; unknown ones are refused."""
    names = [*DEFAULTS, *(["off-target"] if target else [])] if strategy.filters else []
    names = names if asked is None else [*asked]
    for name in names:
        FILTERS[name]
    if "off-target" in names and not target:
        raise InputError("the filter 'off-target' needs texts of the wanted capability; give some with --target")
    return names


def _rejections(rows: Sequence[PoolRow], scores: Scores, evidence: Evidence, names: Sequence[str]) -> list[str | None]:
    """The first reason against each row; a row without a response within the length can never be trained on."""
    reasons = reject(rows, evidence, names)
    for row in np.flatnonzero(np.isnan(scores.dense_nll)).tolist():
        reasons[row] = reasons[row] or "no response among the tokens that are read"
    return reasons


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
