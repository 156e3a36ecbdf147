"""Pruning and training in turns: a small cut, a slice of the data, again, with the dense model as teacher."""
