"""Searches over pooled subjects, whose samples are never in memory together: the stream, and Hyperband."""
