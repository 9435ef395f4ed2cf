"""The command ``ktaskfs``."""
