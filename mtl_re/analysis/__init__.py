"""What lies in data and in predictions: distributions, errors, co-occurrence."""
