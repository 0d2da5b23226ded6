"""Races: the same work by this package and by something else, in turn, each side a process of its own."""
