"""The command line: each command parses, calls one function, prints. Data on stdout, words on stderr.

Nothing here imports torch or ray before a command needs them: `raymsa status` answers at once.
"""

import gc

# Before the imports: looking for garbage among modules that are being loaded is a sixth of `raymsa list`.
gc.set_threshold(100_000)

from raymsa.cli.base import main  # noqa: E402

__all__ = ["main"]
