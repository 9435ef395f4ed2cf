"""Predicts the scaling of ktaskfs from costs measured here and from published series."""
