"""The claims of El Kheir et al. 2024, tested: models and their roles, margins, verdicts, maps."""
