"""Text, task sets and the embedded demo data."""
