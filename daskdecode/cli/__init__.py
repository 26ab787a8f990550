"""The command line: commands parse, call the library and print; they hold no logic."""
