"""Sources: what users have on disk, read into rows."""
