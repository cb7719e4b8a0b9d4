"""Files and hub data sets → validated rows, split and kept apart. No torch."""
