"""One process a library, for `benchmark step --against`; ../versus.py says what they read and write."""
