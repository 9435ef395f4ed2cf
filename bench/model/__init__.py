"""How far ktaskfs should scale, predicted from costs measured here and the published series."""
