"""Logits → probabilities of the final labels → a label → scores, and what may be fitted in between."""
