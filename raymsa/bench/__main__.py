"""`python -m raymsa.bench REQUEST RESULT`: one side in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

from raymsa.bench.request import Request
from raymsa.errors import RaymsaError


def main(asked: Path, told: Path) -> int:
    """Measure what the file `asked` says, write what was found (or one line of error) to `told`."""
    warnings.filterwarnings("ignore")  # of libraries, about themselves
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as theirs

    from raymsa.bench.measure import measure

    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        found = measure(Request.parse(asked.read_text()), lambda line: print(line, file=sys.stderr, flush=True))
    except RaymsaError as error:
        told.write_text(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        return error.exit_code
    told.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
