"""Made data in the exact folders, names and codes of the public benchmarks, one module a benchmark."""
