"""Jobs of `mtl-re predict` that note each window they finish, and whose worker is killed; Ray's workers import this."""

import os
import signal
from pathlib import Path

from mtl_re.predict.predict import _jobs


def watched(checkpoints, options, log, fatal, once, device):
    """As `_jobs`, but a worker kills itself at the file `fatal`: `once`, behind window 1, or before any is finished."""
    make = _jobs(checkpoints, options, device)
    log = Path(log)

    def made(unit):
        job = make(unit)
        write = job.parts.write

        def noted(part, rows):
            here = Path(unit.data).name == fatal
            if here and not once:
                os.kill(os.getpid(), signal.SIGKILL)
            write(part, rows)
            with log.open("a") as file:
                file.write(f"{Path(unit.data).name} {part.window}\n")
            if here and part.window == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        job.parts.write = noted
        return job

    return made
