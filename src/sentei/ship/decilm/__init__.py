"""Files that a nemotron-nas export carries: the config class, and the model for plain transformers."""
