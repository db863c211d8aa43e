"""`python -m raymsa.bench REQUEST RESULT`: one side in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

from raymsa.bench.request import Request
from raymsa.causes import NO_MEMORY
from raymsa.errors import RaymsaError


def main(asked: Path, told: Path) -> int:
    """Measure what the file `asked` says, write what was found (or one line of error) to `told`."""
    warnings.filterwarnings("ignore")  # of libraries, about themselves
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as theirs

    from raymsa.bench.measure import measure

    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    request = Request.parse(asked.read_text())
    try:
        found = measure(request, lambda line: print(line, file=sys.stderr, flush=True))
    except RaymsaError as error:
        return _failed(told, str(error), error.exit_code)
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        advice = "lower train.batch_tokens" if request.side == "raymsa" else "lower --plain-batch"
        return _failed(told, f"{request.side}: out of memory; {advice} ({str(error).splitlines()[0]})", 1)
    told.write_text(json.dumps(found))
    return 0


def _failed(told: Path, error: str, exit_code: int) -> int:
    told.write_text(json.dumps({"error": error, "exit_code": exit_code}))
    return exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
