"""Loading models from wherever they are, and saving pruned ones so that others can load them."""
