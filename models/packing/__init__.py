"""From a trained network to one packed file.

`graph` is the vocabulary of a packed network (ops, values, shapes), `file` reads and writes
`model.safetensors`, `summary` prints the per-layer table. These three import no torch: the service
uses them. `trace` and `pack` turn a torch network into a graph, `unpack` turns a file into a network; they need torch.
"""
