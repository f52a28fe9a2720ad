"""One page of results/: read, ordered, drawn. Nothing here measures or judges."""
