"""The parts of the demo: data, detector, training, measurement and report."""
