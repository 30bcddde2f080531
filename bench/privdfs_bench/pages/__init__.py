"""What the documents show of the result files: one module for each document, and what they share."""
