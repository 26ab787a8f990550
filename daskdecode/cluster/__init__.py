"""Where the work is done: the only room, beside the command line, that knows ``distributed``."""
