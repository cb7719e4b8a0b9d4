"""An encoder's vocabulary cut to the pieces that a language needs."""
