"""Masked-language modelling on unlabelled text, before an encoder is trained on rows."""
