"""The stages of a run: what one is (`base`), the spine, recovery, shipping, and what they check before work begins."""
