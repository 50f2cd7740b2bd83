"""What everything else is made of: annotations, pixel format, keypoint order, foregrounds. Imports nothing of terse-aug."""
