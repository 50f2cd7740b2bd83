"""The parts of the AffNIST example."""
