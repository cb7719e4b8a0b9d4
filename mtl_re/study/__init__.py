"""Many trainings as one experiment: cells, their statistics, a report."""
