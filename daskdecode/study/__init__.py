"""Many subjects: each decoded as if it were alone, all of them in one table."""
