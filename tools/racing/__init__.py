"""Races: the same work by this package and by something else, in turn, each side a process of its own.

Each file is a race like a command of the package; `run` raises TrainingError if a worker dies.
"""
