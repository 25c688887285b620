"""Made data for tests and for the demo."""
