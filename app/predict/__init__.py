"""`signet predict`: pictures in files and folders, answered by an engine in this process or by a server.

`pictures` finds them, `local` and `remote` answer them, `output` writes the answers; `run` puts these together.
"""
