"""Jobs of `mtl-re predict` that note each window they finish, and whose worker is killed; Ray's workers import this."""

import os
import signal
from pathlib import Path

from mtl_re.predict.predict import _jobs


def watched(checkpoints, options, log, fatal, once, device):
    """As `_jobs`, but the worker that finishes window 1 of the file `fatal` kills itself: `once`, or each time."""
    make = _jobs(checkpoints, options, device)
    log = Path(log)

    def made(data, output):
        job = make(data, output)
        write = job.parts.write

        def noted(part, rows):
            write(part, rows)
            line = f"{Path(data).name} {part.window}\n"
            deadly = Path(data).name == fatal and (part.window == 1 if once else True)
            if deadly and not once:
                os.kill(os.getpid(), signal.SIGKILL)
            with log.open("a") as file:
                file.write(line)
            if deadly:
                os.kill(os.getpid(), signal.SIGKILL)

        job.parts.write = noted
        return job

    return made
