"""Models that leave for other people, and weights that come from other trainers."""
