"""How sure a score is: standard errors over clusters of rows, and contrasts."""
