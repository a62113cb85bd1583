"""The commands: flags, a frozen `Config`, `run(config)` and `main`, one file a command."""
