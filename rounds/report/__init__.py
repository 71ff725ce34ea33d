"""A run as one page: what was sampled, judged, paired and trained, and the pairs to look at."""
