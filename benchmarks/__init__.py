"""What is tracked over commits. Parameters and one line a metric; the work is in ``harness``."""
