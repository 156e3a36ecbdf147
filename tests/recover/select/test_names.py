from __future__ import annotations

import numpy as np

from sentei.recover.select.names import keywords, typical

COOKING = ["Write a recipe for soup", "Suggest recipes with rice", "Write the recipe of a soup", "Cook a soup of rice"]
CODE = ["Write a Python function", "Write a function that sorts", "Debug this Python code", "Write Python code"]


def test_names_say_what_sets_a_cluster_apart() -> None:
    cooking, code = keywords([COOKING, CODE])
    assert cooking.split(", ")[:2] in (["recipe", "soup"], ["soup", "recipe"])
    assert code.startswith("python")
    assert "write" not in {cooking.split(", ")[0], code.split(", ")[0]}  # in most rows of both


def test_one_word_in_two_forms_counts_once() -> None:
    assert sum("recipe" in word for word in keywords([COOKING, CODE])[0].split(", ")) == 1


def test_a_row_that_repeats_a_word_counts_it_once() -> None:
    assert keywords([["spam " * 500, "sea wind", "sea salt"], CODE])[0].startswith("sea")


def test_clusters_without_words() -> None:
    assert keywords([["1 2 3", "?"], COOKING])[0] == "–"
    assert keywords([[], ["42"]]) == ["–", "–"]
    assert keywords([]) == []


def test_other_scripts_and_very_long_words() -> None:
    names = keywords([["写一首诗 关于 大海", "大海 的 故事"], ["x" * 5000, "напиши стихи", "стихи о море"]])
    assert "大海" in names[0] and "стихи" in names[1]
    assert max(map(len, names)) < 120


def test_the_typical_row_is_the_one_in_the_middle() -> None:
    vectors = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [0, -1]], np.float32)
    texts = ["far", "\n middle one \nsecond line", "near", "other " * 40, "alone"]
    labels = np.array([0, 0, 0, 1, 2])
    vectors[2] = [0.8, -0.6]
    found = typical(texts, vectors, labels, 3)
    assert found[0] == "far" and found[2] == "alone"
    assert found[1].endswith(" …") and len(found[1]) <= 102
