"""One page that says how good predictions are, where they fail, and how a training went."""
