"""Running statistics over rows: values that start at `zero`, grow by `update` and `merge`."""
