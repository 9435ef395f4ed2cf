"""The operations: one file each; the registry finds them."""
