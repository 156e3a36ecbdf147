"""What a model can do, how fast and how large it is, and how sure we are of each figure."""
