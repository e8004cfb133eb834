"""One module per group of subcommands, none of which imports another; each lists its own in COMMANDS."""
