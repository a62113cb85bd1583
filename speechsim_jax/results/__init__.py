"""Labelled results: scores with their provenance, as files, tables and by depth."""
