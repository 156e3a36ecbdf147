"""A selection for people: a reason for every row, and what a page about it shows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from sentei.files import finite
from sentei.recover.select.picking import Picked
from sentei.recover.select.selection import Scored
from sentei.recover.select.strategies import STRATEGIES, Candidates

MAP_ROWS = 3000
EXAMPLES = 4  # of each cluster: half of them selected


def manifest(scored: Scored, candidates: Candidates, picked: Picked) -> list[dict[str, Any]]:
    """One row for every row of the pool: id, cluster, jsd, tokens, score, decision, reason."""
    selected = set(picked.rows)
    rank, last = _ranks(picked, candidates)
    rows = []
    for at, row in enumerate(scored.pool.rows):
        rejection = scored.rejections[at] or picked.refused.get(at)
        name = "selected" if at in selected else "rejected" if rejection else "left out"
        cluster = int(scored.labels[at])
        where = f" in cluster {cluster}" if picked.shared else ""
        budget = "the cluster's share of the budget" if picked.shared else "the budget"
        if rejection:
            reason = rejection
        elif at not in rank:
            reason = "the strategy gives it no score"
        else:
            place, of = rank[at]
            beyond = "beyond" if place > last[int(picked.groups[at])] else "too long for what was left of"
            reason = f"place {place} of {of}{where}, {'within' if at in selected else beyond} {budget}"
        rows.append(
            {
                "id": row.id,
                "cluster": cluster,
                "jsd": finite(scored.scores.jsd[at]),
                "tokens": int(scored.tokens[at]),
                "score": finite(picked.scores[at]),
                "decision": name,
                "reason": reason,
            }
        )
    return rows


def summarise(
    scored: Scored, about: dict[str, Any], candidates: Candidates, picked: Picked, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """What `sentei.report.selection.render` draws."""
    names = scored.about["clusters"]["names"]
    typical = scored.about["clusters"].get("typical") or [""] * len(names)  # selections of before have none
    damage = candidates.damage()
    taken = np.bincount(scored.labels[picked.rows], minlength=candidates.count)
    unit = about["budget"]["unit"]
    spent = scored.tokens if unit == "tokens" else np.ones(len(rows), np.int64)
    share = np.bincount(scored.labels[picked.rows], spent[picked.rows], candidates.count) / spent[picked.rows].sum()
    clusters = []
    for k in range(candidates.count):
        members = np.flatnonzero(scored.labels == k)
        allowed = candidates.allowed[members] & np.isfinite(scored.scores.jsd[members])
        clusters.append(
            {
                "id": k,
                "name": names[k],
                "typical": typical[k],
                "rows": len(members),
                "rejected": int((~candidates.allowed[members]).sum()),
                "damage": float(damage[k]) if allowed.any() else None,
                "share": float(share[k]),
                "selected": int(taken[k]),
                "examples": _examples(scored, picked, rows, members.tolist()),
            }
        )
    reasons = Counter(_kind(row["reason"]) for row in rows if row["decision"] == "rejected")
    first = {_kind(row["reason"]): row for row in reversed(rows) if row["decision"] == "rejected"}
    return {
        "title": f"Selection of {about['budget']['selected']:,} rows",
        "pool": about["pool"],
        "models": about["models"],
        "strategy": f"{about['strategy']}: {STRATEGIES[about['strategy']].explain}",
        "budget": about["budget"],
        "clusters": clusters,
        "map": _map(scored, picked),
        "rejections": [
            {"reason": reason, "count": count, "example": f"row {first[reason]['id']}: {first[reason]['reason']}"}
            for reason, count in reasons.most_common()
        ],
        "notes": [
            *scored.about["notes"],
            f"filters: {', '.join(scored.about['filters']) or 'none'}",
            _rule(scored.about["clusters"]["rule"]),
        ],
    }


def _rule(rule: dict[str, Any]) -> str:
    """Why there are so many clusters, in words."""
    number, gap = f"{rule['clusters']} clusters", rule["largest_gap"]["ratio"]
    between = f"gap between the eigenvalues of the similarity graph (×{gap:.2f})"
    why = {
        "asked for": "as asked for",
        "gap": f"the largest {between} is there",
        "cube root of the rows": f"about the cube root of the rows, for the largest {between} is not clear (×2)",
    }
    return f"{number}: {why.get(rule['reason'], rule['reason'])}"


def _ranks(picked: Picked, candidates: Candidates) -> tuple[dict[int, tuple[int, int]], dict[int, int]]:
    """Place of each row among those of its group that could be selected; and the last selected place of each group."""
    usable = candidates.allowed & np.isfinite(picked.scores)
    usable[list(picked.refused)] = False
    ranks = {}
    order = np.argsort(-picked.scores, kind="stable")
    for group in range(len(picked.shares)):
        members = order[(picked.groups[order] == group) & usable[order]]
        ranks.update({int(row): (place, len(members)) for place, row in enumerate(members, 1)})
    last = dict.fromkeys(range(len(picked.shares)), 0)
    for row in picked.rows:
        last[int(picked.groups[row])] = max(last[int(picked.groups[row])], ranks[row][0])
    return ranks, last


def _examples(scored: Scored, picked: Picked, rows: list[dict[str, Any]], members: list[int]) -> list[dict[str, Any]]:
    """The best selected rows of a cluster, then the best of the others."""
    best = sorted(members, key=lambda row: -np.nan_to_num(picked.scores[row], neginf=-1e30))
    taken = [row for row in best if rows[row]["decision"] == "selected"]
    others = [row for row in best if rows[row]["decision"] != "selected"]
    shown = taken[: EXAMPLES - min(len(others), EXAMPLES // 2)]
    return [
        {
            "id": rows[row]["id"],
            "prompt": scored.pool.rows[row].prompt,
            "response": scored.pool.rows[row].response,
            "jsd": rows[row]["jsd"],
            "decision": rows[row]["decision"],
            "reason": rows[row]["reason"],
        }
        for row in [*shown, *others[: EXAMPLES - len(shown)]]
    ]


def _map(scored: Scored, picked: Picked) -> list[list[Any]]:
    """A sample of the rows, evenly through the pool."""
    selected = set(picked.rows)
    count = len(scored.pool.rows)
    shown = np.unique(np.linspace(0, count - 1, min(count, MAP_ROWS)).round().astype(int)).tolist()
    return [
        [
            float(scored.coordinates[row, 0]),
            float(scored.coordinates[row, 1]),
            int(scored.labels[row]),
            int(row in selected),
            scored.pool.rows[row].prompt[:120],
        ]
        for row in shown
    ]


def _kind(reason: str) -> str:
    """A reason without what is particular to its row, so that reasons can be counted: what is before the colon."""
    return reason.partition(":")[0]
