"""Files and hub data sets → validated examples, split and guarded. In order: readers, validation, loading, splits."""
