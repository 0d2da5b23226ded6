"""Texts: sources, tokens, vocabulary and word vectors on the host, and the `Inputs` made of them."""
