"""The command line: each command parses, calls one function, prints. Data on stdout, words on stderr.

Nothing here imports torch or ray before a command needs them: `raymsa status` answers at once.
"""

from raymsa.cli.base import main

__all__ = ["main"]
