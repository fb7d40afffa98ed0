"""Distances between the completions of a group that come from elsewhere: a language model as judge, or a function."""
