"""A package: some of what is installed for tests brings one of the same name."""
