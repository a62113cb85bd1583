"""Scripts: `python -m experiments.NAME --flags`, each a thin main over `run(Config(...))`."""
