"""Plans for machines that the default plans are too large for."""
