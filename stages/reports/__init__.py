"""What a person reads: measures of a student, summaries of a store, and the tables that they are told in."""
