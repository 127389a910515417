"""The subcommands of `sdft`, one module each."""
