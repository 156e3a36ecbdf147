"""The smallest model for a task: `fit`, and the whole curve of sizes: `frontier`."""
