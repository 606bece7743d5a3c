"""What a person reads: measures of a student, summaries of a store, and their tables."""
