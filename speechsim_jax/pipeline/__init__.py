"""From audio to statistics: what a pass accumulates, what it costs, and one pass after another."""
