from __future__ import annotations

import pytest

from sentei.data.pools import PoolRow, read_pool
from sentei.errors import InputError
from sentei.recover.select.concepts import ConceptGraph


def row(prompt: str, response: str) -> PoolRow:
    return read_pool([{"prompt": prompt, "response": response}]).rows[0]


def test_concepts_are_key_phrases_in_lower_case() -> None:
    graph = ConceptGraph()
    assert graph.concepts(row("What is the Solar System?", "A star and planets.")) == {
        "solar system",
        "star",
        "planets",
    }
    assert ConceptGraph(words=2).concepts(row("What is the Solar System?", "A star.")) == {"solar system"}
    with pytest.raises(InputError, match="words is 0"):
        ConceptGraph(words=0)


def test_known_concepts_must_have_met() -> None:
    graph = ConceptGraph()
    for known in (row("rivers", "water"), row("fire", "smoke")):
        assert graph.accepts(known)
        graph.add(known)
    assert graph.accepts(row("rivers", "water and stones"))  # something new beside a known pair
    assert graph.accepts(row("wind", "smoke"))  # only one known
    assert not graph.accepts(row("rivers", "smoke"))  # both known, never in one row
    graph.add(row("rivers", "smoke"))
    assert graph.accepts(row("rivers", "smoke"))
    assert not graph.accepts(row("rivers", "smoke and fire"))


def test_it_does_not_see_contradictions() -> None:
    graph = ConceptGraph()
    graph.add(row("Are rivers made of water?", "Yes, rivers are water."))
    assert graph.accepts(row("Are rivers made of water?", "No, rivers are not water."))
