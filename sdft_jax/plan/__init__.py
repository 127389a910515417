"""The memory, traffic and time that an update needs on hardware that is not present."""
