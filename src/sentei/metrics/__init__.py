"""What everything measures with: perplexity, scores of rows, intervals."""
