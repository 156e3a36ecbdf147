"""Search: which variant of every part, so that the model is as small as the goal allows."""
