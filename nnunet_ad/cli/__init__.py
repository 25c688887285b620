"""Command line: the only place that exits the process."""
