"""Watching a model in use: has what is asked of it moved away from the data that it was recovered with?"""
