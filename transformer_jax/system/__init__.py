"""What everything stands on: errors, files, the runtime, and processes that work together."""
