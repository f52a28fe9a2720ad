"""A kernel of one's own, from source to chart."""
