"""Running a model: forward passes, trees of continuations, greedy answers."""
