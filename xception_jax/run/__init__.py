"""What keeps a run safe: its directory, checkpoints, metrics, interruptions, agreement between hosts."""
