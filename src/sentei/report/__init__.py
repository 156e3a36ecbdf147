"""The report of a run: `report.json`, the page made from it, and tables for the terminal."""
