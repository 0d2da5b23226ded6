"""torch's side of a race of text classifiers, as in text_step.py; runs by its path in any python that has torch.

With "packed", the texts are packed sequences, else padded to the longest one, and the state after the padding is
classified.
"""

import os

import protocol
import texts

LAYERS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


def make_steps(torch, options):
    """A function that trains once on each batch."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    embedding = torch.nn.Embedding(options["vocabulary"], 64)
    embedding.weight.requires_grad_(not options["fixed_vectors"])
    layer = getattr(torch.nn, LAYERS[options["cell"]])(64, options["hidden"], batch_first=True)
    classifier = torch.nn.Linear(options["hidden"], 4)
    modules = torch.nn.ModuleList([embedding, layer, classifier])
    optimizer = torch.optim.Adam([weight for weight in modules.parameters() if weight.requires_grad], lr=1e-3)
    batches = [
        (torch.from_numpy(tokens), torch.from_numpy(lengths), torch.from_numpy(labels).long())
        for tokens, lengths, labels in texts.draw(options)
    ]

    def train(tokens, lengths, labels):
        optimizer.zero_grad()
        x = embedding(tokens)  # [N, T, 64]
        if options["packed"]:
            x = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, states = layer(x)
        state = states[0] if options["cell"] == "lstm" else states  # [1, N, H]
        torch.nn.functional.cross_entropy(classifier(state[-1]), labels).backward()
        optimizer.step()

    def steps():
        for batch in batches:
            train(*batch)

    return steps


if __name__ == "__main__":
    protocol.serve(["torch"], make_steps)
