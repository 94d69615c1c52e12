"""Options of the command, spelled once for all verbs that take them, and for the pages that say which command does the same."""
