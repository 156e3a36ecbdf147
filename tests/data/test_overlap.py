from __future__ import annotations

from sentei.data.overlap import overlap

A, B, C = ("once upon a time there was a " + animal for animal in ("very small cat", "very large dog", "green bird"))


def test_the_share_of_lines_that_stand_in_both() -> None:
    assert overlap([f"{A}\n{B}"], [f"{B}\n\n  {A} \n{C}"]) == 1
    assert overlap([A, B], [C]) == 0
    assert overlap([f"{A}\n{B}\n= Title =", C], [f"= Title =\n{A}"]) == len(A) / len(A + B + C)


def test_nothing_to_compare() -> None:
    assert overlap(["short\nlines\n"], ["short\nlines\n"]) == overlap([], [A]) == 0
