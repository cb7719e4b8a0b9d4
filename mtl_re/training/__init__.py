"""One run: set-up, step, losses, checkpoints, tracking, report."""
